"""What can go wrong in the publisher.

DpmError
├── NotServing          it is starting, recovering or stopping; try again (UNAVAILABLE)
├── Overloaded          more is offered than it can do; try again later (RESOURCE_EXHAUSTED)
├── UnknownChange       no such change, or one too old to be waited for by itself (NOT_FOUND)
├── LogUnreadable       the intent log cannot be what this publisher wrote, or is cut off (fatal)
├── LogHeld             another publisher holds the intent log (stand by until it is free)
├── SnapshotFailed      a snapshot of the log was not written (the next start takes longer)
└── SnapshotUnreadable  a snapshot of the log is torn, corrupt or of another format (passed over)

A refused intent is `goalstate.gs.errors.IntentRejected`: the caller's fault, not ours.
"""


class DpmError(Exception):
    """Root of this room's errors."""


class NotServing(DpmError):
    """The publisher cannot accept anything just now."""


class Overloaded(DpmError):
    """More is under way than is answered soon; nothing of the intent was taken."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        """`retry_after_s`: seconds after which it is worth trying again."""
        self.retry_after_s = retry_after_s
        super().__init__(f"the publisher is overloaded: {reason}; nothing of the intent was taken")


class UnknownChange(DpmError):
    """No such change is known."""


class LogUnreadable(DpmError):
    """The intent log holds what no publisher of this version can have written."""


class LogHeld(DpmError):
    """Another publisher holds the intent log."""


class SnapshotFailed(DpmError):
    """The process that writes a snapshot of the intent log did not write it."""


class SnapshotUnreadable(DpmError):
    """A snapshot of the intent log cannot be read; an older one, or the log itself, may be."""
