"""One kit that every broker passes, as `base.py` promises it.

A broker is put to the test through a `Harness`. Each check is a coroutine function in `CHECKS`; it
opens its own connections and topics, and raises `Nonconformity` with what was expected and what
was seen. `RESTART_CHECKS` also kill the broker and start it again.
"""

from __future__ import annotations

from goalstate.bus.conformance import logs, outages, producers, scale
from goalstate.bus.conformance.kit import (
    Check,
    Harness,
    Nonconformity,
    expect,
    expect_error,
    until,
)

__all__ = [
    "CHECKS",
    "RESTART_CHECKS",
    "Check",
    "Harness",
    "Nonconformity",
    "expect",
    "expect_error",
    "until",
]

CHECKS: tuple[Check, ...] = (
    *logs.CHECKS,
    *producers.CHECKS,
    *scale.CHECKS,
    *outages.CHECKS,
)
RESTART_CHECKS: tuple[Check, ...] = outages.RESTART_CHECKS
