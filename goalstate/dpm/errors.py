"""What can go wrong in the publisher.

DpmError
├── NotServing        it is starting, recovering or stopping; try again (UNAVAILABLE)
├── UnknownChange     no such change, or one too old to be waited for by itself (NOT_FOUND)
├── LogUnreadable     a record of the intent log cannot be what this publisher wrote (fatal)
└── LogHeld           another publisher holds the intent log (fatal)

A refused intent is `goalstate.gs.errors.IntentRejected`: the caller's fault, not ours.
"""


class DpmError(Exception):
    """Root of this room's errors."""


class NotServing(DpmError):
    """The publisher cannot accept anything just now."""


class UnknownChange(DpmError):
    """No such change is known."""


class LogUnreadable(DpmError):
    """The intent log holds what no publisher of this version can have written."""


class LogHeld(DpmError):
    """Another publisher holds the intent log."""
