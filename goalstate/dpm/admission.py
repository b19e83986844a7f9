"""Admission: how much may be under way in the publisher before more is shed. Pure: no IO, no clock.

Laws:

1.  What is under way (begun, and not answered yet) is measured in time: how long it takes to answer
    all of it, at the rate at which what was under way lately was answered; or for how long nothing
    was. An intent that would be answered after more than `longest_s` of that is shed at once, so
    that the latency of what is accepted stays bounded however much is offered (Little's law: what
    is under way is rate times latency).
2.  Up to `at_least` intents are under way before any is shed: a rate is only known under load.
3.  What is under way, and what no broker has confirmed yet, is bounded in bytes as well: a broker
    that is slow makes callers wait, not memory grow.
4.  Where nothing is under way, and what is unconfirmed is in its bounds, an intent is admitted,
    however large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from goalstate.dpm.errors import Overloaded

#: What an intent weighs besides its bytes: about as much work as this many bytes of ports.
BASE_BYTES = 500
#: Seconds over which a rate is taken, and how much the newest one counts.
_WINDOW_S = 0.1
_SHARE = 0.3
#: Seconds after which a caller who was shed is asked to try again, within reason.
_RETRY_S = (0.02, 2.0)


class AdmissionPolicy(NamedTuple):
    """`longest_s`: seconds of work under way. Sizes in bytes."""

    longest_s: float = 0.5
    at_least: int = 8
    under_way_bytes: int = 256 * 1024 * 1024
    unconfirmed_bytes: int = 256 * 1024 * 1024


class Admission:
    """Times (`now`) are seconds of one monotonic clock."""

    def __init__(self, policy: AdmissionPolicy) -> None:
        self.policy = policy
        #: Bytes that are not confirmed, of each of those who ask it.
        self.backlogs: list[Callable[[], int]] = []
        #: Intents, and what they weigh.
        self.under_way = 0
        self._weight = 0
        #: Weight answered per second; 0: not known.
        self._rate = 0.0
        #: Of the next rate: seconds in which something was under way, up to `_since`, and the
        #: weight answered in them. And the last answer.
        self._busy_s = 0.0
        self._since = 0.0
        self._answered = 0
        self._last = 0.0

    def check(self, size: int, unconfirmed: int, now: float) -> None:
        """May an intent of `size` bytes begin, where `unconfirmed` bytes are not confirmed?

        Raises Overloaded if not.
        """
        policy = self.policy
        if unconfirmed > policy.unconfirmed_bytes:
            waiting_s = _RETRY_S[1] + policy.longest_s  # nobody knows
            reason = f"the broker has not confirmed {unconfirmed} bytes yet"
        elif not self.under_way:
            return
        else:
            weight = self._weight + size + BASE_BYTES
            waiting_s = max(now - self._last, weight / self._rate if self._rate else 0.0)
            if self.under_way >= policy.at_least and waiting_s > policy.longest_s:
                reason = f"{self.under_way} intents are under way, {waiting_s:.1f} s of work"
            elif self._weight + size > policy.under_way_bytes:
                reason = f"{self._weight} bytes of intents are under way"
            else:
                return
        least, most = _RETRY_S
        raise Overloaded(reason, min(max(waiting_s - policy.longest_s, least), most))

    def enter(self, size: int, unconfirmed: int, now: float) -> None:
        """It begins. Raises Overloaded, as `check`: then it does not."""
        self._measure(now)
        self.check(size, unconfirmed, now)
        if not self.under_way:
            # Idle time says nothing of the rate.
            self._since = self._last = now
        self.under_way += 1
        self._weight += size + BASE_BYTES

    def leave(self, size: int, now: float) -> None:
        """One that entered is answered, whatever came of it."""
        self._measure(now)
        self.under_way -= 1
        self._weight -= size + BASE_BYTES
        self._answered += size + BASE_BYTES
        self._busy_s += now - self._since
        self._since = self._last = now

    def _measure(self, now: float) -> None:
        """Take a rate, if there is one to be taken. Those that are answered together count all."""
        if self._busy_s >= _WINDOW_S and now > self._last:
            rate = self._answered / self._busy_s
            self._rate += _SHARE * (rate - self._rate) if self._rate else rate
            self._busy_s, self._answered = 0.0, 0
