"""Which streams a host follows: its inbox, and those that it has subscriptions for. Pure.

Laws:

1.  A subscription is a resource of the inbox, and applied here: its stream is followed, or not. All
    other resources are for the data plane (`programming`).
2.  When one ends, all that came from its stream is taken out of the data plane.
3.  When one says that its stream is elsewhere from now on, on another topic or channel, it is read
    on there from what is known of it: marks go on whatever carries them.
4.  A stream of which an earlier run stored something (see `state`) begins with that: it is
    programmed, and read on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from goalstate.agent.actions import Action, Unfollow
from goalstate.agent.decoding import Group, grouped
from goalstate.agent.news import News
from goalstate.agent.programming import Programming
from goalstate.agent.repair import Repair
from goalstate.agent.state import Journal, StoredStream, restored
from goalstate.agent.stream import Stream
from goalstate.gs.resources import CONFIGURATION, Kind, Resource
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, to_position
from goalstate.gs.topics import Topics, is_session, of_session


class Subscriptions:
    """Of one host. Times (`now`) are nanoseconds since the Unix epoch."""

    def __init__(
        self,
        inbox: StreamId,
        streams: dict[StreamId, Stream],
        programming: Programming,
        repair: Repair,
        news: News,
        actions: list[Action],
        *,
        topics: Topics,
        sessions: bool,
        counting: bool,
        journal: Journal | None,
    ) -> None:
        """`streams` are those that are followed, `actions` gets what is to be read or not.

        `sessions`: can streams be followed over them? `counting`: nothing is held of streams that
        are not the hosts' own.
        """
        self._inbox = inbox
        self._streams = streams
        self._programming = programming
        self._repair = repair
        self._news = news
        self._actions = actions
        self._topics = topics
        self._has_sessions = sessions
        self._counting = counting
        self._journal = journal
        #: Not followed (yet) in this run.
        self._stored: dict[StreamId, StoredStream] = {}

    def start(self, stored: Iterable[StoredStream], now: int) -> None:
        """Follow the inbox, and what it was known to have subscriptions for."""
        self._stored = {one.stream: one for one in stored}
        if self._journal is not None:
            self._journal.found(self._stored)
        self._follow(self._inbox, self._topics.of_stream(self._inbox), b"", now)
        if self._journal is not None:
            for stream_id in self._stored:
                self._journal.moved(stream_id)
        # Nothing of it is followed any more.
        self._stored = {}

    def want(
        self,
        stream: Stream,
        group: Group,
        olds: Mapping[str, Resource | None] | None,
        previous: Mark,
        now: int,
    ) -> None:
        """Apply, or bring to the data plane, what of a group is in `olds`, where is what was held
        before; None: all of it, and it is new. `previous` is the mark before.
        """
        if group.kind is Kind.SUBSCRIPTION:
            for resource in group.resources:
                if olds is None or resource.id in olds:
                    self._subscribe(resource, group, olds or {}, previous, now)
        elif olds is None:
            self._programming.want_all(stream, group, previous, now)
        elif olds:
            self._programming.want_each(stream, group, olds, previous, now)

    def _subscribe(
        self,
        resource: Resource,
        group: Group,
        olds: Mapping[str, Resource | None],
        previous: Mark,
        now: int,
    ) -> None:
        """A subscription came, changed or went."""
        inbox = self._streams[self._inbox]
        fact = CONFIGURATION[Kind.SUBSCRIPTION].FromString(resource.payload)
        if not (group.refusal or resource.deleted or self._has_sessions) and (
            fact.channel == Channel.SESSION
        ):
            reason = "UNSUPPORTED_CHANNEL: this agent was given no publisher to open a session to"
            group = Group(Kind.SUBSCRIPTION, False, reason, [resource], [()])
        if group.refusal:
            old = {resource.id: olds.get(resource.id)}
            self._programming.want_each(inbox, group, old, previous, now)
            return
        self._programming.applied(inbox, Kind.SUBSCRIPTION, resource.id)
        try:
            stream_id = StreamId.parse(resource.id)
        except ValueError:
            return  # the end of one that was refused
        if resource.deleted:
            self._unfollow(stream_id, now)
        else:
            topic = fact.topic or self._topics.of_stream(stream_id)
            if fact.channel == Channel.SESSION:
                topic = of_session(stream_id)
            self._follow(stream_id, topic, fact.start_position, now)

    def _follow(self, stream_id: StreamId, topic: str, start: bytes, now: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            counting = self._counting and not stream_id.kind.for_hosts
            stream = self._streams[stream_id] = Stream(stream_id, topic, start, counting=counting)
            stream.followed_ns = now
            if self._resume(stream, now):
                start = stream.live.position or start
        elif stream.leaving:
            stream.leaving = False
            stream.followed_ns = now
            stream.topic, stream.start = topic, start
        elif stream.topic != topic:
            # Positions are of a topic: on the new one what comes after what is known is looked
            # for. On a session a mark is a position.
            stream.topic, stream.start = topic, start
            self._repair.moved(stream)
            reading = stream.reading
            reading.position = to_position(reading.mark) if is_session(topic) else b""
            start = reading.position or start
            if self._journal is not None:
                self._journal.moved(stream.id)
        else:
            return
        self._repair.read(stream, start)

    def _resume(self, stream: Stream, now: int) -> bool:
        """Hold what is stored of a stream that begins, and bring it to the data plane."""
        stored = self._stored.pop(stream.id, None)
        if stored is None:
            return False
        reading = restored(stored)
        head = stored.head
        if reading is None or (head.topic, head.counting) != (stream.topic, stream.counting):
            if self._journal is not None:
                self._journal.replaced(stream.id)
            return False
        if self._journal is not None and len(stored.resources) > reading.size():
            self._journal.replaced(stream.id)  # more tombstones than are remembered
        stream.live = reading
        stream.since = ORIGIN
        # Subscriptions first: what they bring is what the others refer to.
        for kind in sorted(reading.held, key=lambda kind: (kind is not Kind.SUBSCRIPTION, kind)):
            for group in grouped(reading.held[kind].values(), stream.id):
                self.want(stream, group, None, ORIGIN, now)
        stream.since = None
        # Also where there is nothing to wait for.
        self._programming.touched[stream.id] = stream
        return True

    def _unfollow(self, stream_id: StreamId, now: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.leaving:
            return
        self._programming.leave(stream, now)
        stream.forget()
        # What is still in the data plane keeps the stream's place until it is out.
        stream.leaving = True
        if not any(stream.unsettled.values()):
            del self._streams[stream_id]
        if self._journal is not None:
            self._journal.replaced(stream.id)
        self._news.exceptions = True
        self._news.streams.pop(stream_id, None)
        self._news.dropped[stream_id] = None
        self._actions.append(Unfollow(stream_id))
