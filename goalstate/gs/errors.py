"""What can go wrong with goal state: the errors of this room, one tree.

GoalStateError
├── MessageError             the sender's fault: what came cannot be used, none of it was taken
│   ├── MalformedMessage     the bytes are no such protobuf: truncated, invalid UTF-8, garbage
│   ├── UnknownFormatVersion the format version is none that is known here, or there is none
│   ├── FormatMismatch       two statements of the format version disagree
│   ├── OversizeMessage      more bytes than the receiver takes
│   ├── EnvelopeError        a property of the envelope is missing or cannot be what it is
│   └── UnknownKind          a resource of a kind that is not known here
├── ConversionError          one format has no way to say what the other says
├── IntentError              the caller's fault: nothing of the intent was taken
│   ├── IntentSyntaxError    the text is no intent: YAML syntax, unknown key, wrong type
│   └── IntentRejected       the intent cannot stand; names every violation
└── StalePlan                our misuse: the desired state has changed since the plan was made
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class GoalStateError(Exception):
    """Root of this room's errors."""


class MessageError(GoalStateError):
    """A message that came from elsewhere cannot be used."""


class MalformedMessage(MessageError):
    """The bytes are no protobuf message of the kind expected, or one that contradicts itself."""


class UnknownFormatVersion(MessageError):
    """The format version is not one of the known ones. `found` is None if there is none."""

    def __init__(self, found: int | None, where: str = "message") -> None:
        self.found = found
        self.where = where
        super().__init__(
            f"the {where} does not begin with a format version (101 or 102 expected)"
            if found is None
            else f"the {where} has format version {found}, and only 101 and 102 are known"
        )


class FormatMismatch(MessageError):
    """Two statements of the format version of one message disagree."""

    def __init__(self, expected: int, by: str, found: int, where: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(f"{by} says format version {expected}, but {where} {found}")


class OversizeMessage(MessageError):
    """A message is larger than the receiver takes. Sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"a message of {size} bytes is over the limit of {limit}")


class EnvelopeError(MessageError):
    """A property of the envelope is missing or wrong; `name` is the property."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"envelope property {name!r}: {reason}")


class UnknownKind(MessageError):
    """A resource of a kind that is not known here; `kind` is its number or name."""

    def __init__(self, kind: int | str, id_: str = "") -> None:
        self.kind = kind
        self.id = id_
        super().__init__(f"unknown kind of resource {kind!r}" + (f" ({id_})" if id_ else ""))


class ConversionError(GoalStateError):
    """One format has no way to say what the other says. `host` and `resource` name the place."""

    def __init__(
        self, reason: str, *, host: str | None = None, resource: str | None = None
    ) -> None:
        self.reason = reason
        self.host = host
        self.resource = resource
        place = [f"host {host!r}"] if host is not None else []
        place += [resource] if resource is not None else []
        super().__init__(": ".join([", ".join(place), reason] if place else [reason]))


class IntentError(GoalStateError):
    """An intent cannot be used; nothing of it was taken."""


class IntentSyntaxError(IntentError):
    """A text is no intent. `line` counts from 1; `path` is the field, empty for the document.

    `others` are the further errors of the text, by line; the message has a line for each of the
    first 20 in all.
    """

    _NAMED = 20

    def __init__(
        self,
        source: str,
        line: int,
        path: str,
        reason: str,
        others: Sequence[IntentSyntaxError] = (),
    ) -> None:
        self.source = source
        self.line = line
        self.path = path
        self.reason = reason
        self.others = tuple(others)
        told = [f"{source}:{line}: " + (f"{path}: " if path else "") + reason]
        told += map(str, self.others[: self._NAMED - 1])
        if len(self.others) >= self._NAMED:
            told.append(f"… and {len(self.others) - self._NAMED + 1} more errors")
        super().__init__("\n".join(told))


class Violation(NamedTuple):
    """One thing that is wrong with an intent."""

    #: The field, for example `ports[3].fixed_ips[0].ip_address`.
    path: str
    #: A stable word, see `validation.Reason`.
    reason: str
    #: For people; names the other party, if there is one.
    message: str


class IntentRejected(IntentError):
    """An intent contradicts itself or what is there. `violations` holds all of them."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = list(violations)
        first = self.violations[0]
        more = len(self.violations) - 1
        super().__init__(f"{first.path}: {first.message}" + (f" (and {more} more)" if more else ""))


class StalePlan(GoalStateError):
    """A plan was to be committed to another state than it was made for."""
