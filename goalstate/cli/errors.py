"""What can end a command early, and the exit code that each ending has.

CommandError            a user can do something about it: one message, and what to do next
├── InputError          the command line, a file or an id is wrong (2)
├── Refused             the publisher refused what was asked (1)
├── Undecided           an answer could not be had in time (3)
└── Unreachable         nobody answers at an address (4)

Anything else that is raised is a defect of ours: it is shown as one line, and with a traceback
where GOALSTATE_DEBUG=1 is set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    OK = 0
    #: The publisher refused it, a difference was found, or a packet would not be delivered.
    REFUSED = 1
    #: Wrong command line, file, id or intent.
    USAGE = 2
    #: Not converged in time, or something that had to be asked gave no answer.
    UNDECIDED = 3
    #: No publisher, broker or agent answers; or a port is taken.
    UNREACHABLE = 4
    #: A defect of this program.
    INTERNAL = 70
    #: Ctrl-C; for what cleans up alike at SIGTERM, also that.
    INTERRUPTED = 130


#: Shown at the end of `goalstate --help`.
EXIT_CODES = """Exit codes: 0 done, or as wanted; 1 refused, or differences found, or not \
delivered; 2 wrong usage or input; 3 not converged in time, or unknown; 4 nobody answers at an \
address, or a port is busy; 70 a defect (GOALSTATE_DEBUG=1 shows the traceback); 130 interrupted, \
by Ctrl-C or SIGTERM."""
#: What the bus says where nobody answers: the URL, and why.
_NOBODY = re.compile(r"nobody answers at (\S+) \((.*?)\)(?:;.*)?", re.DOTALL)


class CommandError(Exception):
    """Ends the command with one message.

    `next_step` says what to do about it; `detail` goes into the JSON form of the error.
    """

    code: ExitCode = ExitCode.INTERNAL

    def __init__(
        self, message: str, next_step: str = "", *, detail: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.message = message
        self.next_step = next_step
        self.detail = detail
        super().__init__(message)


class InputError(CommandError):
    """What the user gave cannot be used."""

    code = ExitCode.USAGE


class Refused(CommandError):
    """The publisher refused it; nothing changed."""

    code = ExitCode.REFUSED


class Undecided(CommandError):
    """There is no answer, or none in time."""

    code = ExitCode.UNDECIDED


class Unreachable(CommandError):
    """Nobody answers at an address, or an address cannot be had."""

    code = ExitCode.UNREACHABLE


def no_broker(url: str, error: Exception) -> Unreachable:
    """What to tell of a BrokerUnreachable: where, why, and how to get a broker."""
    told = _NOBODY.fullmatch(str(error))
    where, why = told.groups() if told else (url, str(error))
    return Unreachable(
        f"no broker answers at {where}: {why}",
        "start one with `goalstate broker start`, or give --broker (GOALSTATE_BROKER_URL)",
    )
