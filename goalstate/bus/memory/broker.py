"""The broker that is a few lists. It has no loop, no thread and no clock of its own. Pure.

`publish` appends to a log, and each `step` hands one pending delivery to one reader. Which reader
is next is drawn from the seed: one seed is one interleaving, and every run of it is the same.

Laws:

1.  Faults act on deliveries, never on the log. A reader that re-opens at a position is offered
    everything after that position again, whatever was dropped or held back before.
2.  A delivery that is held back (reordered) or duplicated comes before the broker is idle.
3.  A cut-off reader loses nothing: what it was owed is pending again once the cut is healed.
4.  The state is settled before a sink is called, so a sink may publish, attach and detach.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from goalstate.bus.base import EARLIEST, LATEST, MAX_PAYLOAD, Message, Sink
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusError,
    MessageTooLarge,
    PositionGone,
    ProducerFenced,
)

_INDEX = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with deliveries, each a probability in 0..1 per delivery."""

    seed: int = 0
    #: The reader never sees it (until it re-opens at an earlier position).
    drop: float = 0.0
    #: The reader sees it again, at some later time.
    duplicate: float = 0.0
    #: The reader sees it after one or more of its successors, if there are any by then.
    reorder: float = 0.0


class _Log:
    """One topic: its messages from index `base` on, and who reads and sends."""

    __slots__ = ("base", "exclusive", "generation", "messages", "producers", "readers")

    def __init__(self) -> None:
        self.base = 0
        self.messages: list[Message] = []
        self.readers: dict[MemoryReader, None] = {}
        self.producers = 0
        self.exclusive = False
        #: How often the topic was taken over; producers of an earlier one are thrown out.
        self.generation = 0

    @property
    def end(self) -> int:
        return self.base + len(self.messages)


class MemoryReader:
    """An attached reader. `name` is what `MemoryBroker.partition` cuts off."""

    __slots__ = ("_cursor", "_held", "_log", "_slot", "name", "sink", "topic")

    def __init__(self, topic: str, name: str, sink: Sink, log: _Log, cursor: int) -> None:
        self.topic = topic
        self.name = name
        self.sink = sink
        self._log = log
        self._cursor = cursor
        self._held: list[Message] = []
        self._slot = -1


class MemoryBroker:
    """Topics, readers and pending deliveries. `now_ns` stamps messages (ns since the epoch)."""

    def __init__(self, now_ns: Callable[[], int], faults: Faults = Faults()) -> None:
        self._now_ns = now_ns
        #: May be replaced while running; the sequence of random draws goes on.
        self.faults = faults
        self._random = Random(faults.seed).random
        self._logs: dict[str, _Log] = {}
        self._ready: list[MemoryReader] = []
        self._cut_names: set[str] = set()
        self._cut_topics: set[str] = set()
        self._down = False
        self._watchers: list[Callable[[], None]] = []
        #: Counts of deliveries so far, by what became of them.
        self.delivered = 0
        self.dropped = 0
        self.duplicated = 0
        self.held_back = 0

    # -- the log -----------------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        properties: Mapping[str, str] | None = None,
        sender: str = "",
    ) -> bytes:
        """Append one message and give its position.

        Raises MessageTooLarge, or BrokerUnreachable while the broker is down or `sender` cut off.
        """
        if len(payload) > MAX_PAYLOAD:
            raise MessageTooLarge(f"{topic}: {len(payload)} bytes, at most {MAX_PAYLOAD}")
        self.check_reachable(topic, sender)
        log = self._log(topic)
        position = _INDEX.pack(log.end)
        log.messages.append(
            Message(
                topic,
                key,
                dict(properties) if properties else {},
                bytes(payload),
                position,
                self._now_ns(),
            )
        )
        for reader in log.readers:
            if reader._slot < 0:
                self._settle(reader)
        return position

    def messages(self, topic: str, start: bytes = EARLIEST) -> list[Message]:
        """The messages after `start` that the topic holds. Raises PositionGone."""
        log = self._logs.get(topic)
        if log is None:
            log = _Log()
        return log.messages[self._cursor(topic, log, start) - log.base :]

    def trim(self, topic: str, keep: int) -> None:
        """Forget all but the newest `keep` messages, as a broker's retention would."""
        log = self._log(topic)
        surplus = len(log.messages) - keep
        if surplus > 0:
            del log.messages[:surplus]
            log.base += surplus
            for reader in log.readers:
                reader._cursor = max(reader._cursor, log.base)
                self._settle(reader)

    def expire(self, before_ns: int, *, for_good: Collection[str] = ()) -> None:
        """Forget what was published before a time, but on the topics that are kept `for_good`."""
        for topic, log in self._logs.items():
            if topic not in for_good:
                self.trim(topic, sum(one.published_ns >= before_ns for one in log.messages))

    @property
    def topics(self) -> list[str]:
        """The topics that hold messages, in order of creation."""
        return [topic for topic, log in self._logs.items() if log.end]

    # -- readers -----------------------------------------------------------------------------

    def attach(self, topic: str, start: bytes, sink: Sink, *, name: str = "") -> MemoryReader:
        """Open a reader after position `start`. Raises PositionGone, BrokerUnreachable."""
        self.check_reachable(topic, name)
        log = self._log(topic)
        reader = MemoryReader(topic, name, sink, log, self._cursor(topic, log, start))
        log.readers[reader] = None
        self._settle(reader)
        return reader

    def detach(self, reader: MemoryReader) -> None:
        """Close a reader; what it was still owed is not delivered. Closing twice is harmless."""
        reader._log.readers.pop(reader, None)
        self._remove(reader)

    # -- exclusive producers -----------------------------------------------------------------

    def claim(
        self, topic: str, *, exclusive: bool = False, take_over: bool = False, name: str = ""
    ) -> int:
        """Register a producer; gives the topic's generation, by which it is known.

        Raises ProducerFenced as `Bus.open_producer` describes, or BrokerUnreachable.
        """
        self.check_reachable(topic, name)
        log = self._log(topic)
        if exclusive and take_over and log.producers:
            log.generation += 1
            log.producers = 0
        elif log.exclusive or (exclusive and log.producers):
            raise ProducerFenced(f"{topic}: another producer holds the topic")
        log.producers += 1
        log.exclusive = exclusive
        return log.generation

    def check_claim(self, topic: str, generation: int) -> None:
        """Raises ProducerFenced if the topic was taken over since it was claimed."""
        if self._log(topic).generation != generation:
            raise ProducerFenced(f"{topic}: another producer took the topic over")

    def release(self, topic: str, generation: int) -> None:
        """Undo one `claim`; there is nothing to undo of one that was thrown out."""
        log = self._log(topic)
        if log.generation == generation:
            log.producers -= 1
            log.exclusive = False

    # -- faults ------------------------------------------------------------------------------

    def partition(self, *, names: Iterable[str] = (), topics: Iterable[str] = ()) -> None:
        """Cut off readers and senders by name, and whole topics, until `heal`."""
        self._cut_names.update(names)
        self._cut_topics.update(topics)
        self._settle_all()

    def heal(self) -> None:
        """Undo every partition."""
        self._cut_names.clear()
        self._cut_topics.clear()
        self._settle_all()

    def stop(self) -> None:
        """Go away: nothing is delivered and sends fail, until `start`. The logs stay."""
        self._down = True
        self._settle_all()

    def start(self) -> None:
        """Come back after `stop`."""
        self._down = False
        self._settle_all()

    def check_reachable(self, topic: str, name: str = "") -> None:
        """Raises BrokerUnreachable if the broker is down, or `name` or `topic` cut off."""
        if self._down or name in self._cut_names or topic in self._cut_topics:
            raise BrokerUnreachable(f"memory broker: {name or topic} is cut off")

    # -- deliveries --------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when no delivery is pending (what is cut off does not count)."""
        return not self._ready

    def step(self) -> bool:
        """Settle one pending delivery: deliver, drop or hold it back. False if there was none.

        What the sink raises comes through, after the delivery has been counted as made.
        """
        ready = self._ready
        if not ready:
            return False
        random = self._random
        reader = ready[int(random() * len(ready))]
        log = reader._log
        held = reader._held
        message: Message | None
        if held and (reader._cursor >= log.end or random() < 0.5):
            message = held.pop(int(random() * len(held)))
        else:
            message = log.messages[reader._cursor - log.base]
            reader._cursor += 1
            message = self._misfortune(message, held)
        if not held and reader._cursor >= log.end:
            self._remove(reader)
        if message is not None:
            self.delivered += 1
            reader.sink(message)
        return True

    def run_until_idle(self, limit: int = 10_000_000) -> int:
        """Step until nothing is pending; gives the number of steps.

        Raises BusError after `limit` steps: then the sinks keep each other busy for ever.
        """
        steps = 0
        while self._ready:
            if steps >= limit:
                raise BusError(f"memory broker: not idle after {limit} steps")
            self.step()
            steps += 1
        return steps

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` whenever idleness ends; gives the function that stops this."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _misfortune(self, message: Message, held: list[Message]) -> Message | None:
        """What becomes of a delivery on its first try; None if it does not arrive now."""
        faults = self.faults
        if faults.drop and self._random() < faults.drop:
            self.dropped += 1
            return None
        if faults.duplicate and self._random() < faults.duplicate:
            self.duplicated += 1
            held.append(message)
        if faults.reorder and self._random() < faults.reorder:
            self.held_back += 1
            held.append(message)
            return None
        return message

    def _log(self, topic: str) -> _Log:
        log = self._logs.get(topic)
        if log is None:
            log = self._logs[topic] = _Log()
        return log

    @staticmethod
    def _cursor(topic: str, log: _Log, start: bytes) -> int:
        """The index of the first message after position `start`."""
        if start == EARLIEST:
            return log.base
        if start == LATEST:
            return log.end
        if len(start) != _INDEX.size:
            raise PositionGone(f"{topic}: {start.hex()} is no position of this broker")
        cursor: int = _INDEX.unpack(start)[0] + 1
        if not log.base <= cursor <= log.end:
            raise PositionGone(
                f"{topic}: position {cursor - 1} is outside the log {log.base}..{log.end - 1}"
            )
        return cursor

    def _settle(self, reader: MemoryReader) -> None:
        """Make the reader ready exactly if it has a delivery that may be made now."""
        if (
            (reader._held or reader._cursor < reader._log.end)
            and not self._down
            and reader.name not in self._cut_names
            and reader.topic not in self._cut_topics
        ):
            if reader._slot < 0:
                reader._slot = len(self._ready)
                self._ready.append(reader)
                if reader._slot == 0:
                    for watcher in self._watchers:
                        watcher()
        else:
            self._remove(reader)

    def _settle_all(self) -> None:
        for log in self._logs.values():
            for reader in log.readers:
                self._settle(reader)

    def _remove(self, reader: MemoryReader) -> None:
        slot = reader._slot
        if slot < 0:
            return
        last = self._ready.pop()
        if last is not reader:
            self._ready[slot] = last
            last._slot = slot
        reader._slot = -1
