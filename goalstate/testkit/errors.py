"""What a test is told when something is not as it must be.

KitError (an AssertionError)
├── ConditionNotMet   a named condition did not come within its bound
├── ProcessFailed     a process ended at its start, or did not get ready in time
├── NotAnswered       a DPM or an agent process gives no answer
├── IntentRefused     the DPM does not take an intent; it has the violations
├── NotConverged      hosts do not have a change within the bound; it has the DPM's answer
├── Differs           a host does not hold what it must; it has the differences
├── BadMessage        what is on a topic is no message of the stream that was asked for
└── LawBroken         the simulator of faults found a run that breaks a law; it has the run
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale.oracle import Difference
from goalstate.scale.simulate.run import Result


class KitError(AssertionError):
    """Root of the kit's errors: each fails the test that it comes up in."""


class ConditionNotMet(KitError):
    """A named condition did not come within its bound."""


class ProcessFailed(KitError):
    """A process ended at its start, or did not get ready in time."""


class NotAnswered(KitError):
    """A DPM or an agent process gives no answer."""


class IntentRefused(KitError):
    """The DPM does not take an intent."""

    def __init__(self, message: str, violations: Sequence[api.Violation]) -> None:
        self.violations = list(violations)
        super().__init__(message)


class NotConverged(KitError):
    """Hosts do not have a change within the bound."""

    def __init__(self, message: str, reply: api.WaitReply) -> None:
        self.reply = reply
        super().__init__(message)


class Differs(KitError):
    """A host does not hold what it must."""

    def __init__(self, message: str, differences: Sequence[Difference]) -> None:
        self.differences = list(differences)
        super().__init__(message)


class BadMessage(KitError):
    """What is on a topic is no message of the stream that was asked for."""


class LawBroken(KitError):
    """The simulator of faults found a run that breaks a law."""

    def __init__(self, message: str, result: Result) -> None:
        self.result = result
        super().__init__(message)


#: A module's `__tracebackhide__`: where one of these fails a test, pytest shows the test's own line
#: and not the kit's inside.
hide: Any = operator.methodcaller("errisinstance", KitError)
