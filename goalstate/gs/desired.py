"""The desired state: the accepted intent as it stands.

Laws:

1.  `plan` changes nothing. It gives the changes that an intent amounts to, or names every
    violation.
2.  `commit` cannot fail on a plan that was made for the state as it is, and does all of it.
3.  The state is a function of the objects that are there (see `objects`), so split, squashed or
    reordered intents that end in the same objects end in the same state.
4.  Both cost as much as the change is large, whatever the size of the state. The exceptions look
    at what they must: a changed CIDR at the addresses that it may no longer cover, and a deletion
    at the users of what it deletes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from goalstate.gs.after import After
from goalstate.gs.errors import IntentRejected, StalePlan
from goalstate.gs.intent import Intent, ObjectKind
from goalstate.gs.objects import Objects
from goalstate.gs.validation import in_field_order, validate


class ObjectChange(NamedTuple):
    """An object that differs; None before: it is new, None after: it goes."""

    kind: ObjectKind
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Changes:
    """What an intent amounts to: objects that come or change in the order of their kinds, then
    those that go in the reverse order. Objects in it are in normal form."""

    items: Sequence[ObjectChange]
    #: Version of the desired state that it was planned for.
    version: int

    def __iter__(self) -> Iterator[ObjectChange]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Desired(Objects):
    """The accepted intent as it stands."""

    def __init__(self) -> None:
        super().__init__()
        #: Grows with each commit.
        self.version = 0

    def plan(self, intent: Intent) -> Changes:
        """What the intent amounts to; an object that is there already is no change.

        Raises IntentRejected with every violation, in the order of the intent's fields.
        """
        after = After(self, intent)
        validate(after)
        if after.violations:
            raise IntentRejected(in_field_order(after.violations))
        items = []
        for kind, table in self._tables.items():
            get = table.get
            for id_, object_ in after.put[kind].items():
                before = get(id_)
                if before != object_:
                    items.append(ObjectChange(kind, before, object_))
        for kind in reversed(ObjectKind):
            table = self._tables[kind]
            items += [ObjectChange(kind, table[id_], None) for id_ in after.gone[kind]]
        return Changes(items, self.version)

    def commit(self, changes: Changes) -> None:
        """Make the planned changes. Raises StalePlan if anything was committed since the plan."""
        if changes.version != self.version:
            raise StalePlan(
                f"the plan was made for version {changes.version} of the desired state, "
                f"which is now at {self.version}"
            )
        self.version += 1
        self._replace(changes.items)
