"""Sessions at the publisher: rings, bounded queues, and what a slow agent gets."""

from __future__ import annotations

import pytest

from goalstate.agent.follows import Follows, SessionReader
from goalstate.bus.base import Message
from goalstate.dpm.building import Building
from goalstate.dpm.core import Core
from goalstate.dpm.rings import Checkpoint, Rings
from goalstate.dpm.sessions import Session, Sessions, checkpoint_of
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import MessageKind
from goalstate.gs.intent import ChannelChoice, Intent
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, to_position, vpc_stream
from goalstate.scale.links import at_once
from tests.dpm.test_channels import V1, accept, begun, choose, ports
from tests.dpm.test_path_independence import port

NOW = 7


class Hub:
    """A core, and the sessions that carry what comes of it."""

    def __init__(self, *, queue_bytes: int = 1 << 20, of_stream: int = 1 << 20) -> None:
        self.core: Core = begun()
        accept(self.core, ports(1, 4))
        newest = {
            stream: state.mark
            for stream, state in self.core.streams.items()
            if state.channel is Channel.SESSION
        }
        self.built = 0
        self.rings = Rings(newest, of_stream=of_stream)
        self.sessions = Sessions(
            self.rings, self._build, clock_ns=lambda: NOW, queue_bytes=queue_bytes
        )

    async def _build(self, stream: StreamId) -> Checkpoint:
        self.built += 1
        building = Building(self.core, stream)
        while not building.done:
            building.step()
        return checkpoint_of(building, NOW)

    @property
    def mark(self) -> Mark:
        return self.core.streams[V1].mark

    def change(self, number: int) -> None:
        self.apply(Intent(ports=(port(1, 1, "h1", ip=20 + number),)))

    def apply(self, intent: Intent) -> None:
        for publication in accept(self.core, intent).publications:
            if publication.channel is Channel.SESSION:
                self.sessions.send(publication, lambda: None)
            elif publication.begins:
                self.sessions.leave(publication.envelope.stream)

    def follow(self, session: Session, id_: int, mark: Mark, stream: StreamId = V1) -> None:
        at_once(self.sessions.follow(session, id_, stream, mark))


def taken(session: Session) -> list[tuple[int, str, Mark]]:
    """All that waits for a session: which Follow, what, at which mark."""
    found = []
    while (carried := session.pop()) is not None:
        if carried.gone:
            found.append((carried.id, "gone", ORIGIN))
        else:
            envelope = envelopes.from_properties(dict(carried.message.properties))
            found.append((carried.id, envelope.kind.value, envelope.mark))
    return found


def back(mark: Mark, number: int) -> Mark:
    return Mark(mark.epoch, mark.sequence - number)


def test_who_has_the_newest_mark_gets_nothing_but_what_comes() -> None:
    hub = Hub()
    session = hub.sessions.begin()
    hub.follow(session, 1, hub.mark)
    assert taken(session) == []
    hub.change(1)
    assert taken(session) == [(1, "delta", hub.mark)]
    assert hub.built == 0


def test_who_lags_a_little_gets_what_it_lacks_from_the_ring() -> None:
    hub = Hub()
    for number in range(5):
        hub.change(number)
    session = hub.sessions.begin()
    hub.follow(session, 1, back(hub.mark, 2))
    assert taken(session) == [(1, "delta", back(hub.mark, 1)), (1, "delta", hub.mark)]
    assert hub.built == 0


def test_who_lags_too_far_gets_a_checkpoint_and_what_comes_after_it() -> None:
    hub = Hub(of_stream=0)
    hub.change(1)
    session = hub.sessions.begin()
    hub.follow(session, 1, back(hub.mark, 2))
    hub.change(2)
    assert taken(session) == [
        (1, "checkpoint", back(hub.mark, 1)),
        (1, "in-sync", back(hub.mark, 1)),
        (1, "delta", hub.mark),
    ]


def test_a_checkpoint_serves_all_for_as_long_as_the_ring_continues_it() -> None:
    hub = Hub(of_stream=2000)
    sessions = [hub.sessions.begin() for _ in range(3)]
    for session in sessions[:2]:
        hub.follow(session, 1, ORIGIN)
        hub.change(1)
    assert hub.built == 1
    for number in range(30):
        hub.change(number % 7 + 2)
    hub.follow(sessions[2], 1, ORIGIN)
    assert hub.built == 2
    assert taken(sessions[2])[-1] == (1, "in-sync", hub.mark)


def test_a_slow_session_is_bounded_and_begins_anew_with_the_state_as_it_is_by_then() -> None:
    hub = Hub(queue_bytes=8000, of_stream=1000)
    slow, quick = hub.sessions.begin(), hub.sessions.begin()
    hub.follow(slow, 1, hub.mark)
    hub.follow(quick, 1, hub.mark)
    most = 0
    for number in range(200):
        hub.change(number % 7)
        most = max(most, slow.size)
        assert taken(quick) == [(1, "delta", hub.mark)], "nobody else notices"
    assert most <= 8000 + 2000
    assert taken(slow) == [(1, "gone", ORIGIN)]
    assert hub.sessions.resyncs == 1
    hub.follow(slow, 2, ORIGIN)
    assert taken(slow) == [(2, "checkpoint", hub.mark), (2, "in-sync", hub.mark)]


def test_only_the_follows_that_lost_something_come_to_their_end() -> None:
    hub = Hub(queue_bytes=8000)
    session = hub.sessions.begin()
    hub.follow(session, 1, hub.mark)
    hub.follow(session, 2, Mark(9, 9), vpc_stream("another"))
    while session.follows.get(1):
        hub.change(hub.core.change % 7)
    assert set(session.follows) == {2}


def test_what_is_not_on_sessions_is_waited_for_and_asked_for_again_when_it_comes() -> None:
    hub = Hub()
    hub.apply(choose(ChannelChoice.PULSAR))
    session = hub.sessions.begin()
    hub.follow(session, 1, back(hub.mark, 3))
    assert taken(session) == []
    hub.apply(choose(ChannelChoice.SESSION))
    assert taken(session) == [(1, "gone", ORIGIN)]
    hub.follow(session, 2, back(hub.mark, 1))
    assert taken(session) == [(2, "delta", hub.mark)]


def test_what_was_let_go_of_is_not_sent_any_more() -> None:
    hub = Hub()
    session = hub.sessions.begin()
    hub.follow(session, 1, hub.mark)
    hub.sessions.unfollow(session, 1)
    hub.sessions.unfollow(session, 1)
    hub.change(1)
    assert taken(session) == []
    hub.follow(session, 2, hub.mark)
    hub.sessions.end(session)
    hub.change(2)
    assert not session.follows
    assert session not in hub.sessions.open


def test_sessions_are_ended_in_the_order_in_which_they_were_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    opened = [hub.sessions.begin() for _ in range(50)]
    ended: list[Session] = []

    def end(session: Session) -> None:
        ended.append(session)

    monkeypatch.setattr(Session, "end", end)
    at_once(hub.sessions.close())
    assert ended == opened


def test_rings_are_bounded_all_together() -> None:
    rings = Rings({}, of_stream=1000, of_all=3000)
    streams = [vpc_stream(f"v{n}") for n in range(10)]
    core = begun()
    envelope = accept(core, ports(1, 1)).publications[0].envelope
    for sequence in range(1, 4):
        for stream in streams:
            of = envelope._replace(stream=stream, mark=Mark(1, sequence), after=None)
            rings.put(of, session_pb2.Message(payload=b"x" * 400))
            assert rings.size <= 3000
    assert rings.after(streams[0], Mark(1, 3)) == []
    assert rings.after(streams[0], Mark(1, 2)) is None
    assert len(rings.after(streams[9], Mark(1, 2)) or []) == 1


# --- the agent's side ---


class Asked:
    """What an agent process asked for."""

    def __init__(self, follows: Follows) -> None:
        self.requests: list[session_pb2.Request] = []
        follows.connected(self.requests.append)

    def take(self) -> list[tuple[str, int]]:
        found = []
        for request in self.requests:
            if request.HasField("follow"):
                found.append(("follow", request.follow.sequence))
            else:
                found.append(("unfollow", request.unfollow.id))
        self.requests.clear()
        return found


def delta(id_: int, sequence: int, kind: MessageKind = MessageKind.DELTA) -> session_pb2.Carried:
    core = begun()
    envelope = accept(core, ports(1, 1)).publications[0].envelope
    envelope = envelope._replace(stream=V1, mark=Mark(1, sequence), kind=kind)
    message = session_pb2.Message(properties=envelopes.to_properties(envelope))
    return session_pb2.Carried(id=id_, message=message)


def test_readers_at_one_mark_share_a_follow_and_get_the_same_message() -> None:
    follows = Follows()
    asked = Asked(follows)
    got: list[tuple[str, Message]] = []
    start = to_position(Mark(1, 5))

    def reader(name: str) -> SessionReader:
        return follows.attach(V1, start, lambda message: got.append((name, message)))

    readers = [reader("a"), reader("b")]
    assert asked.take() == [("follow", 5)]
    follows.take(delta(1, 6))
    (first, message), (second, other) = got
    assert (first, second) == ("a", "b")
    assert message is other
    assert message.position == to_position(Mark(1, 6))
    readers[0].detach()
    assert asked.take() == []
    readers[1].detach()
    assert asked.take() == [("unfollow", 1)]


def test_one_that_begins_elsewhere_has_a_follow_of_its_own_until_it_has_caught_up() -> None:
    follows = Follows()
    asked = Asked(follows)
    got: list[tuple[str, int]] = []

    def reader(name: str, sequence: int) -> None:
        def sink(message: Message) -> None:
            got.append((name, int(message.properties["seq"])))

        follows.attach(V1, to_position(Mark(1, sequence)), sink)

    reader("a", 5)
    reader("b", 3)
    assert asked.take() == [("follow", 5), ("follow", 3)]
    follows.take(delta(2, 4))
    follows.take(delta(2, 5))
    assert asked.take() == [("unfollow", 1)]
    follows.take(delta(1, 6))
    follows.take(delta(2, 6))
    assert got == [("b", 4), ("b", 5), ("b", 6), ("a", 6)]
    assert len(follows) == 1


def test_what_is_gone_or_cut_is_asked_for_again_from_where_it_is() -> None:
    follows = Follows()
    asked = Asked(follows)
    follows.attach(V1, b"", lambda message: None)
    follows.take(delta(1, 7, MessageKind.CHECKPOINT))
    assert asked.take() == [("follow", 0)]
    follows.take(session_pb2.Carried(id=1, gone=True))
    assert asked.take() == [("follow", 0)]
    follows.take(delta(1, 8))  # of a Follow that is over
    follows.take(delta(2, 7, MessageKind.CHECKPOINT))
    follows.take(delta(2, 7, MessageKind.IN_SYNC))
    follows.disconnected()
    assert asked.take() == []
    assert Asked(follows).take() == [("follow", 7)]


def test_a_position_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="3 bytes are no position"):
        Follows().attach(V1, b"abc", lambda message: None)
