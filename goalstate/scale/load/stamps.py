"""A change's identity and intended start, in the W3C trace context that travels with it.

The DPM passes the trace context of an intent on to all that is published of it, and agents see it;
so a fleet knows, without asking anybody, which change a message is of and when that was to start.

The W3C's format is: 00-<trace id, 16 bytes>-<parent id, 8 bytes>-00. Of a load run the trace id is
the run's tag (3 bytes), the generator's number (1), the change's number (4), and its intended start
in ns since the Unix epoch, by the coordinator's clock (8). The parent id is the number plus 1.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from goalstate.scale.load.errors import LoadError

MAX_GENERATORS = 256


class Stamp(NamedTuple):
    generator: int
    #: Of the change, among those of the generator, from 0.
    number: int
    #: Intended start, ns since the Unix epoch.
    intended_ns: int


class Stamps:
    """Of one run: stamps of other runs, and other traces, are nobody's."""

    def __init__(self, run: str) -> None:
        # Never 0: a trace id of zeros is not valid.
        tag = int.from_bytes(hashlib.sha256(run.encode()).digest()[:3]) or 1
        self._prefix = f"00-{tag:06x}"

    def write(self, stamp: Stamp) -> str:
        """Raises LoadError for a number that has no room."""
        if not (stamp.generator < MAX_GENERATORS and stamp.number < 1 << 32):
            raise LoadError(f"{stamp} has no room in a trace id")
        return (
            f"{self._prefix}{stamp.generator:02x}{stamp.number:08x}{stamp.intended_ns:016x}"
            f"-{stamp.number + 1:016x}-00"
        )

    def read(self, traceparent: str) -> Stamp | None:
        """None: it is not of this run."""
        if not traceparent.startswith(self._prefix) or len(traceparent) != 55:
            return None
        return Stamp(
            int(traceparent[9:11], 16), int(traceparent[11:19], 16), int(traceparent[19:35], 16)
        )
