"""When a data plane is asked again for what it refused for now. Pure: a function of its arguments.

The delay doubles from one attempt to the next, up to a bound, and so does the number of attempts
have one; both together bound the time. Up to half of each delay is taken off, by a hash of host,
resource and attempt: thousands of hosts that were refused at one moment do not come back at one.
"""

from __future__ import annotations

from typing import NamedTuple

import xxhash

from goalstate.gs.resources import Kind


class RetryPolicy(NamedTuple):
    """How often, and how soon. Times in nanoseconds."""

    #: In all, the first one included.
    attempts: int = 8
    first_ns: int = 1_000_000_000
    longest_ns: int = 60_000_000_000

    def delay_ns(self, host: str, kind: Kind, id_: str, attempts: int) -> int | None:
        """From the refusal of attempt number `attempts` to the next one; None: there is none."""
        if attempts >= self.attempts:
            return None
        longest = min(self.first_ns << min(attempts - 1, 40), self.longest_ns)
        drawn = xxhash.xxh3_64_intdigest(f"{host}/{kind:d}/{id_}/{attempts}".encode())
        return longest - (longest // 2 * drawn >> 64)
