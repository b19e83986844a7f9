"""What is stored of a host, and a host that begins with it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.agent.reports import summary
from goalstate.agent.state import Head, StoredStream, Update
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Mark, StreamId
from tests.agent.rig import (
    HOST,
    INBOX,
    START_NS,
    STREAM,
    TOPICS,
    Rig,
    checkpoint,
    gone,
    group,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)

LOG = TOPICS.of_stream(STREAM)


class Store:
    """What a file would hold of one host."""

    def __init__(self) -> None:
        self.heads: dict[StreamId, Head] = {}
        self.resources: dict[StreamId, dict[tuple[Kind, str], Resource]] = {}

    def write(self, updates: list[Update]) -> None:
        for host, stream, head, whole, resources, without in updates:
            assert host == HOST
            held = self.resources.setdefault(stream, {})
            if head is None:
                self.heads.pop(stream, None)
                del self.resources[stream]
                continue
            self.heads[stream] = head
            if whole:
                held.clear()
            for key in without:
                held.pop(key, None)
            for one in resources:
                held.pop((one.kind, one.id), None)
                held[one.kind, one.id] = one

    def take(self, rig: Rig) -> Store:
        """Store what changed."""
        assert rig.core.journal is not None
        self.write(rig.core.journal.take(HOST, rig.core.streams))
        return self

    def stored(self) -> list[StoredStream]:
        return [
            StoredStream(stream, head, list(self.resources[stream].values()))
            for stream, head in self.heads.items()
        ]


def state(rig: Rig) -> object:
    """All of a host that must be the same after a restart."""
    return (
        {
            id_: (
                one.topic,
                one.live.mark,
                one.live.position,
                one.live.digest,
                one.live.expected,
                one.watermark,
                {kind: dict(held) for kind, held in one.live.held.items() if held},
                {kind: dict(dead) for kind, dead in one.live.tombstones.items() if dead},
            )
            for id_, one in rig.core.streams.items()
        },
        rig.in_plane(),
        rig.exceptions(),
    )


def messages(rig: Rig) -> int:
    return sum(rig.core.counters.messages.values())


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.join(vpc(), subnet(), group())
    rig.on_vpc(*(neighbor(n) for n in range(5)))
    rig.on_vpc(neighbor(0, 2), gone(neighbor(1)))
    rig.on_inbox(port(1, groups=["group-1"]))
    return rig


def test_a_host_goes_on_with_what_was_stored_and_reads_only_what_it_missed(rig: Rig) -> None:
    stored = Store().take(rig).stored()
    rig.on_vpc(neighbor(7))
    rig.on_inbox(port(2))
    host = Rig(beside=rig, stored=stored)
    # Before a single message is read, all of it is in the data plane, in the order of dependency.
    assert host.programmed[:3] == ["vpc/vpc-1", "subnet/subnet-1", "security_group/group-1"]
    assert "port/port-1" in host.in_plane()
    assert host.watermark() == Mark(1, 3)
    assert messages(host) == 0
    host.run()
    assert messages(host) == 2
    assert state(host) == state(rig)
    assert host.agrees()
    assert host.agrees(host.inbox)
    # The same revision that was deleted does not come back.
    host.on_vpc(neighbor(1, 2))
    assert "neighbor/port-1" not in host.in_plane()


def test_nothing_new_is_stored_of_a_host_that_goes_on_and_of_one_at_rest(rig: Rig) -> None:
    store = Store().take(rig)
    assert rig.core.journal is not None
    assert not rig.core.journal
    host = Rig(beside=rig, stored=store.stored())
    host.run()
    assert host.core.journal is not None
    assert host.core.journal.take(HOST, host.core.streams) == []


def test_only_what_changed_is_stored(rig: Rig) -> None:
    Store().take(rig)
    rig.on_vpc(neighbor(2, 2), gone(neighbor(3)))
    assert rig.core.journal is not None
    (update,) = rig.core.journal.take(HOST, rig.core.streams)
    assert not update.whole
    assert list(update.resources) == [neighbor(2, 2), gone(neighbor(3))]


def test_a_stream_that_is_left_is_forgotten(rig: Rig) -> None:
    store = Store().take(rig)
    rig.on_inbox(gone(port(1)), gone(subscription()))
    assert store.take(rig).heads.keys() == {INBOX}


def test_a_stream_that_is_left_and_followed_again_is_stored_as_it_is_then(rig: Rig) -> None:
    store = Store().take(rig)
    rig.on_inbox(gone(port(1)), gone(subscription()))
    rig.broker.trim(LOG, 0)
    rig.vpc.held.clear()
    rig.vpc.epoch = 2
    rig.vpc.mark = Mark(0, 0)
    rig.on_inbox(subscription(revision=3))
    rig.on_vpc(vpc(2))
    host = Rig(beside=rig, stored=store.take(rig).stored())
    assert state(host) == state(rig)


def since(rig: Rig) -> int:
    """As the inspection service lists it."""
    (told,) = (at for at in summary(rig.core).streams if at.stream == str(STREAM))
    return told.followed_unix_ns


def test_since_when_a_stream_is_followed_is_told_anew_where_it_was_left(rig: Rig) -> None:
    assert since(rig) == START_NS
    rig.on_inbox(gone(port(1)), gone(subscription()))
    rig.now += 5
    rig.on_inbox(subscription(revision=3))
    assert since(rig) > START_NS


def test_what_is_not_followed_any_more_is_forgotten(rig: Rig) -> None:
    store = Store().take(rig)
    del store.heads[INBOX]
    rig.on_inbox(gone(port(1)), gone(subscription()))
    host = Rig(beside=rig, stored=store.stored())
    host.run()
    assert store.take(host).heads.keys() == {INBOX}
    assert state(host) == state(rig)


def test_a_position_that_is_gone_leads_to_the_checkpoint(rig: Rig) -> None:
    stored = Store().take(rig).stored()
    rig.on_vpc(gone(neighbor(0)._replace(revision=2)))
    rig.on_vpc(neighbor(8))
    checkpoint(rig.broker, rig.vpc)
    rig.broker.trim(LOG, 2)
    host = Rig(beside=rig, stored=stored)
    assert "neighbor/port-0" in host.in_plane()
    host.run()
    assert host.core.counters.resyncs == 1
    assert host.in_plane() == rig.in_plane()
    assert host.agrees()
    assert host.watermark() == rig.watermark()


def test_what_is_not_as_its_digest_says_is_read_anew(rig: Rig) -> None:
    store = Store().take(rig)
    del store.resources[STREAM][Kind.NEIGHBOR, "port-2"]
    host = Rig(beside=rig, stored=store.stored())
    assert messages(host) == 0
    assert host.in_plane() == set()  # what its port refers to is not there
    host.run()
    assert messages(host) == 3
    assert state(host) == state(rig)
    assert state(Rig(beside=rig, stored=store.take(host).stored())) == state(rig)


def test_a_stream_with_something_unreadable_is_stored_as_not_read(rig: Rig) -> None:
    store = Store().take(rig)
    rig.put(rig.vpc.publish(neighbor(6)._replace(payload=b"\xff"), claim=()))
    rig.run()
    assert len(rig.exceptions()) == 1
    assert store.take(rig).heads.keys() == {INBOX}
    rig.on_vpc(neighbor(6))
    assert not rig.exceptions()
    host = Rig(beside=rig, stored=store.take(rig).stored())
    assert state(host) == state(rig)


def test_a_host_that_counted_and_now_decodes_reads_anew(rig: Rig) -> None:
    counting = Rig(beside=rig, counting=True)
    counting.run()
    stored = Store().take(counting).stored()
    again = Rig(beside=rig, counting=True, stored=stored)
    assert again.watermark() == Mark(1, 3)
    host = Rig(beside=rig, stored=stored)
    host.run()
    assert state(host) == state(rig)


def test_what_a_data_plane_refuses_is_an_exception_again(rig: Rig) -> None:
    rig.refuse.add("port-9")
    rig.on_vpc(neighbor(9))
    host = Rig(beside=rig, stored=Store().take(rig).stored())
    assert not host.exceptions()
    assert host.watermark() == rig.watermark()


def test_a_batch_that_failed_is_stored_anew_as_a_whole(rig: Rig) -> None:
    store = Store().take(rig)
    rig.on_vpc(neighbor(7))
    journal = rig.core.journal
    assert journal is not None
    lost = journal.take(HOST, rig.core.streams)
    assert lost
    rig.on_vpc(neighbor(8))
    journal.failed(rig.core.streams)
    host = Rig(beside=rig, stored=store.take(rig).stored())
    assert state(host) == state(rig)


def test_not_more_deletions_are_restored_than_are_remembered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goalstate.agent.stream.TOMBSTONES", 2)
    monkeypatch.setattr("goalstate.agent.state.TOMBSTONES", 2)
    store = Store()
    for number in (0, 2, 3, 4):
        rig.on_vpc(neighbor(number)._replace(revision=5, payload=b""))
        store.take(rig)
    assert len([one for one in store.resources[STREAM].values() if one.deleted]) == 5
    host = Rig(beside=rig, stored=store.stored())
    assert state(host) == state(rig)
    store.take(host)
    assert len([one for one in store.resources[STREAM].values() if one.deleted]) == 2


_steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "port", "store", "checkpoint", "leave", "resync"]),
        st.integers(0, 4),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(_steps)
def test_what_is_restored_is_what_was_stored_whatever_happened(
    steps: list[tuple[str, int]],
) -> None:
    rig = Rig()
    rig.join(vpc(), subnet())
    store = Store().take(rig)
    then = state(rig)
    ports: dict[str, Resource] = {}
    follows = True
    for revision, (what, number) in enumerate(steps, 2):
        if what == "put":
            rig.on_vpc(neighbor(number, revision))
        elif what == "delete":
            rig.on_vpc(neighbor(number)._replace(revision=revision, payload=b""))
        elif what == "port" and follows:
            ports[f"port-{number}"] = port(number, revision)
            rig.on_inbox(port(number, revision))
        elif what == "store":
            then = state(rig)
            store.take(rig)
        elif what == "checkpoint":
            checkpoint(rig.broker, rig.vpc)
            rig.run()
        elif what == "leave":
            follows = not follows
            fact = subscription(revision=revision)
            if follows:
                rig.on_inbox(fact)
            else:
                gone_ports = [p._replace(revision=revision, payload=b"") for p in ports.values()]
                rig.on_inbox(*gone_ports, fact._replace(payload=b""))
                ports.clear()
        elif what == "resync" and follows:
            rig.perform(rig.core.position_gone(STREAM, rig.now))
            rig.pass_time(2)
    host = Rig(beside=rig, stored=store.stored())
    assert state(host) == then
    host.run()
    assert host.in_plane() == rig.in_plane()
    assert host.core.streams.keys() == rig.core.streams.keys()
    for id_, stream in host.core.streams.items():
        assert stream.live.digest == rig.core.streams[id_].live.digest
        assert stream.watermark == rig.core.streams[id_].watermark
    assert host.core.counters.mismatches == host.core.counters.gaps == 0


def test_what_is_stored_and_not_applied_is_of_all_messages_that_may_have_brought_it() -> None:
    rig, store = Rig(), Store()
    rig.join(vpc(), subnet())
    rig.on_vpc(neighbor(1, subnets=["nowhere"]))
    rig.on_vpc(neighbor(2))
    store.take(rig)
    host = Rig(beside=rig, stored=store.stored())
    host.run()
    (fault,) = host.faults().values()
    assert fault.pending
    assert fault.mark < Mark(1, 2) < host.watermark()
