"""Names of topics.

Ids are free text, so they are encoded: every byte outside [A-Za-z0-9_.-] becomes `~` and two
hexadecimal digits. That is reversible, keeps names readable, and with the fixed ending leaves no
way to write a name that Pulsar reads as something else (a `-partition-3` at the end, a slash).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from goalstate.gs.streams import StreamId, StreamKind

#: What begins so is no topic: the stream named after it travels over sessions.
_SESSION = "session:"
_UNSAFE = re.compile(rb"[^A-Za-z0-9_.-]")


def encode(id_: str) -> str:
    """A part of a topic name that stands for `id_`."""
    return _UNSAFE.sub(lambda m: b"~%02x" % m[0][0], id_.encode()).decode("ascii")


def decode(text: str) -> str:
    """The id that `text` stands for. Raises ValueError when `encode` cannot have made it."""
    raw = re.sub(rb"~([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode("ascii"))
    id_ = raw.decode()
    if encode(id_) != text:
        raise ValueError(f"{text!r} is no encoded id")
    return id_


def of_session(stream: StreamId) -> str:
    """What stands in the place of a topic where a stream travels over sessions."""
    return f"{_SESSION}{stream}"


def is_session(topic: str) -> bool:
    return topic.startswith(_SESSION)


class Topics(NamedTuple):
    """The topics of one shard of a region (see `sharding`); a region that is not divided is one.

    `prefix` is, on Pulsar, `persistent://tenant/namespace`. Shard 0 has the names that a region has
    which is not divided, so that a publisher that takes it for another division finds a log that
    says how it is divided, and not an empty one.
    """

    prefix: str = "persistent://goalstate/region"
    report_shards: int = 4
    #: This shard, of so many.
    shard: int = 0
    shards: int = 1

    def all_shards(self) -> list[Topics]:
        """Those of every shard of the region."""
        return [self._replace(shard=shard) for shard in range(self.shards)]

    @property
    def _begin(self) -> str:
        """What every name begins with."""
        return f"{self.prefix}/shard-{self.shard}." if self.shard else f"{self.prefix}/"

    def of_stream(self, stream: StreamId) -> str:
        return f"{self._begin}{stream.kind.value}.{encode(stream.id)}.log"

    def stream_of(self, topic: str) -> StreamId:
        """The stream that travels on a topic. Raises ValueError for another topic."""
        name = topic.removeprefix(self._begin)
        kind, _, rest = name.partition(".")
        if name == topic or not rest.endswith(".log"):
            raise ValueError(f"{topic!r} carries no stream")
        return StreamId(StreamKind(kind), decode(rest.removesuffix(".log")))

    def checkpoints_of(self, stream: StreamId) -> str:
        """Where the checkpoints of a stream are. There is no such topic before the first one."""
        return f"{self._begin}{stream.kind.value}.{encode(stream.id)}.checkpoint"

    @property
    def intent_log(self) -> str:
        return f"{self._begin}intent.log"

    @property
    def intent_snapshots(self) -> str:
        """Where the snapshots of the intent log are. There is no such topic before the first."""
        return f"{self._begin}intent.checkpoint"

    def dead_letters(self, number: int) -> str:
        """As many as topics of reports; of all shards together."""
        return f"{self.prefix}/dead-letters.{number % self.report_shards}"

    def reports(self, number: int) -> str:
        return f"{self._begin}reports.{number % self.report_shards}"
