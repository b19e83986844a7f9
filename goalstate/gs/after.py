"""The state as it would be after an intent: what is there, overlaid by what the intent says.

Validity is judged here and nowhere else, so the order of objects within an intent means nothing,
and two ports may swap addresses. Nothing of the desired state is copied or changed; the overlay
costs as much as the intent is large, whatever the size of the state.

The laws of deletions: what is in use cannot go, unless its users go or stop using it in the same
intent, or the deletion cascades. A cascade takes everything that refers to what is deleted, whole,
and what refers to that; but never an object that the intent itself gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import IntEnum, StrEnum
from itertools import islice
from typing import Any, TypeVar

from goalstate.gs import addresses
from goalstate.gs.errors import Violation
from goalstate.gs.intent import FIELDS, Intent, Object, ObjectKind
from goalstate.gs.objects import Objects

#: Bytes of UTF-8. A topic name carries an id at up to three times its size.
MAX_ID_BYTES = 200
#: Any id of so many characters is short enough.
SURELY_SHORT = MAX_ID_BYTES // 4
#: So many objects are named in one message.
NAMED = 3

T = TypeVar("T")

_control = re.compile(r"[\x00-\x1f\x7f-\x9f]").search


class Reason(StrEnum):
    """Why an intent cannot stand: stable words, for programs."""

    MISSING = "MISSING"
    BAD_ID = "BAD_ID"
    BAD_IP = "BAD_IP"
    BAD_MAC = "BAD_MAC"
    BAD_CIDR = "BAD_CIDR"
    BAD_VALUE = "BAD_VALUE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    INVERTED_RANGE = "INVERTED_RANGE"
    PORTS_WITHOUT_PROTOCOL = "PORTS_WITHOUT_PROTOCOL"
    CONFLICTING_REMOTES = "CONFLICTING_REMOTES"
    FAMILY_MISMATCH = "FAMILY_MISMATCH"
    DUPLICATE_ID = "DUPLICATE_ID"
    DUPLICATE_IP = "DUPLICATE_IP"
    DUPLICATE_MAC = "DUPLICATE_MAC"
    DUPLICATE_TUNNEL_ID = "DUPLICATE_TUNNEL_ID"
    DUPLICATE_REFERENCE = "DUPLICATE_REFERENCE"
    GIVEN_AND_DELETED = "GIVEN_AND_DELETED"
    UNKNOWN_ID = "UNKNOWN_ID"
    UNKNOWN_REFERENCE = "UNKNOWN_REFERENCE"
    WRONG_VPC = "WRONG_VPC"
    IMMUTABLE = "IMMUTABLE"
    OUTSIDE_VPC = "OUTSIDE_VPC"
    OUTSIDE_SUBNET = "OUTSIDE_SUBNET"
    RESERVED_IP = "RESERVED_IP"
    OVERLAPPING_SUBNETS = "OVERLAPPING_SUBNETS"
    SUBNET_HAS_ROUTER = "SUBNET_HAS_ROUTER"
    PORT_HAS_DHCP = "PORT_HAS_DHCP"
    HOST_HAS_PORTS = "HOST_HAS_PORTS"
    IN_USE = "IN_USE"
    TOO_LARGE = "TOO_LARGE"
    NO_SESSIONS = "NO_SESSIONS"
    # Where the region is divided (see `sharding`):
    OTHER_SHARD = "OTHER_SHARD"
    HOSTS_APART = "HOSTS_APART"


_REASONS: dict[Any, Reason] = {
    addresses.ip: Reason.BAD_IP,
    addresses.mac: Reason.BAD_MAC,
    addresses.prefix: Reason.BAD_CIDR,
}


class After:
    """The overlay, and the violations found so far."""

    __slots__ = ("gone", "intent", "put", "state", "violations")

    def __init__(self, state: Objects, intent: Intent) -> None:
        self.state = state
        self.intent = intent
        self.violations: list[Violation] = []
        #: What the intent gives, by kind and id. Checks replace objects by their normal form.
        self.put: dict[ObjectKind, dict[str, Any]] = {}
        #: What it deletes, and the index of the deletion that is to blame.
        self.gone: dict[ObjectKind, dict[str, int]] = {kind: {} for kind in ObjectKind}
        for kind, field in FIELDS.items():
            self.put[kind] = self._given(kind, field)
        self._delete()

    def violate(self, path: str, reason: Reason, message: str) -> None:
        self.violations.append(Violation(path, reason.value, message))

    # --- the state after the change ---

    def get(self, kind: ObjectKind, id_: str) -> Any:
        """The object as it would be, None if it would not."""
        given = self.put[kind].get(id_)
        if given is not None:
            return given
        return None if id_ in self.gone[kind] else self.state.get(kind, id_)

    def touched(self, kind: ObjectKind, id_: str) -> bool:
        """Is the object given or deleted by the intent, so that its state before says nothing?"""
        return id_ in self.put[kind] or id_ in self.gone[kind]

    def settle(self, kind: ObjectKind, index: int, normal: Object) -> None:
        """Take `normal` for what the intent gives at `index`."""
        given: Object = getattr(self.intent, FIELDS[kind])[index]
        if self.put[kind].get(given.id) is given:
            self.put[kind][given.id] = normal

    def refer(self, kind: ObjectKind, id_: str, path: str) -> Any:
        """What the field at `path` refers to; None, and a violation, if there is none."""
        found = self.get(kind, id_) if id_ else None
        if found is None:
            if not id_:
                self.violate(path, Reason.MISSING, f"names no {kind.word}")
            else:
                self.violate(path, Reason.UNKNOWN_REFERENCE, self.absence(kind, id_))
        return found

    def absence(self, kind: ObjectKind, id_: str) -> str:
        index = self.gone[kind].get(id_)
        if index is None:
            return f"there is no {kind.word} {id_}"
        return f"{kind.word} {id_} is deleted by deletes[{index}]"

    def normal(self, parse: Callable[[str], T], text: str, path: str) -> T | None:
        """The address by a parser of `addresses`; None, and a violation, if it is none."""
        try:
            return parse(text)
        except ValueError as error:
            if text:
                self.violate(path, _REASONS[parse], str(error))
            else:
                self.violate(path, Reason.MISSING, "the address is missing")
            return None

    def keep_vpc(self, kind: ObjectKind, given: Any, path: str) -> None:
        """An object stays in its VPC: whoever holds it does so as part of the VPC."""
        before = self.state.get(kind, given.id)
        if before is not None and before.vpc_id != given.vpc_id:
            self.violate(
                f"{path}.vpc_id",
                Reason.IMMUTABLE,
                f"{kind.word} {given.id} is of VPC {before.vpc_id} and cannot change it",
            )

    def rival(
        self, kind: ObjectKind, index: int, key: Any, claims: dict[Any, int], holder: str | None
    ) -> str | None:
        """Which other object has `key`, of which there can be one?

        `claims` collects the keys that the intent's objects have, by index; `holder` is the object
        that had the key before the intent. One id given twice is no rival of itself.
        """
        objects = getattr(self.intent, FIELDS[kind])
        id_: str = objects[index].id
        first = claims.setdefault(key, index)
        if first != index:
            other: str = objects[first].id
            return other if other != id_ or not id_ else None
        if holder is None or holder == id_ or self.touched(kind, holder):
            return None
        return holder

    # --- reading the intent ---

    def check_id(self, id_: str, path: str, what: str = "id") -> None:
        if not id_:
            self.violate(path, Reason.MISSING, f"the {what} is missing")
            return
        try:
            size = len(id_.encode())
        except UnicodeEncodeError:
            self.violate(path, Reason.BAD_ID, f"the {what} {id_!r} is no Unicode text")
            return
        if size > MAX_ID_BYTES:
            self.violate(
                path, Reason.BAD_ID, f"the {what} has {size} bytes, {MAX_ID_BYTES} are allowed"
            )
        if _control(id_):
            self.violate(path, Reason.BAD_ID, f"the {what} {id_!r} has control characters")

    def check_enum(self, kind: type[IntEnum], value: int, path: str) -> None:
        if value not in kind._value2member_map_:
            names = ", ".join(member.name for member in kind)
            self.violate(path, Reason.BAD_VALUE, f"there is no {value} (known: {names})")

    def _given(self, kind: ObjectKind, field: str) -> dict[str, Any]:
        objects = getattr(self.intent, field)
        given = {}
        for index, object_ in enumerate(objects):
            id_ = object_[0]
            if not id_ or len(id_) > SURELY_SHORT or not id_.isprintable():
                self.check_id(id_, f"{field}[{index}].id")
            given[id_] = object_
        if len(given) != len(objects):
            first: dict[str, int] = {}
            for index, object_ in enumerate(objects):
                id_ = object_[0]
                if first.setdefault(id_, index) == index:
                    given[id_] = object_
                elif id_:
                    self.violate(
                        f"{field}[{index}].id",
                        Reason.DUPLICATE_ID,
                        f"{kind.word} {id_} is given already as {field}[{first[id_]}]",
                    )
        given.pop("", None)
        return given

    def _delete(self) -> None:
        explicit: dict[tuple[ObjectKind, str], int] = {}
        for index, (number, id_, _) in enumerate(self.intent.deletes):
            path = f"deletes[{index}].id"
            try:
                kind = ObjectKind(number)
            except ValueError:
                self.violate(
                    f"deletes[{index}].kind",
                    Reason.BAD_VALUE if number else Reason.MISSING,
                    f"there is no kind {number}" if number else "the kind is missing",
                )
                continue
            first = explicit.get((kind, id_))
            if not id_:
                self.violate(path, Reason.MISSING, "the id is missing")
            elif id_ in self.put[kind]:
                self.violate(
                    path, Reason.GIVEN_AND_DELETED, f"{kind.word} {id_} is given in the same intent"
                )
            elif first is not None:
                self.violate(
                    path,
                    Reason.DUPLICATE_ID,
                    f"{kind.word} {id_} is deleted already by deletes[{first}]",
                )
            elif self.state.get(kind, id_) is None:
                self.violate(path, Reason.UNKNOWN_ID, f"there is no {kind.word} {id_}")
            else:
                explicit[kind, id_] = self.gone[kind][id_] = index
        reached = self._cascade(explicit)
        for (kind, id_), index in explicit.items():
            if (kind, id_) not in reached:
                self._refuse_if_used(kind, id_, index)

    def _cascade(self, explicit: dict[tuple[ObjectKind, str], int]) -> set[tuple[ObjectKind, str]]:
        """Spread the deletions that cascade; what they reached may go whoever uses it."""
        pending = [ref for ref, index in explicit.items() if self.intent.deletes[index].cascade]
        reached = set(pending)
        while pending:
            kind, id_ = pending.pop()
            index = self.gone[kind][id_]
            # The order of deletions is published; that of the indexes depends on the path.
            for user in sorted(self.state.users(kind, id_)):
                if user not in reached and user[1] not in self.put[user[0]]:
                    reached.add(user)
                    self.gone[user[0]].setdefault(user[1], index)
                    pending.append(user)
        return reached

    def _refuse_if_used(self, kind: ObjectKind, id_: str, index: int) -> None:
        # Users that the intent gives, and that still refer to it, say so themselves.
        users = (user for user in self.state.users(kind, id_) if not self.touched(*user))
        names = named(f"{user_kind.word} {user_id}" for user_kind, user_id in users)
        if names:
            self.violate(
                f"deletes[{index}].id", Reason.IN_USE, f"{kind.word} {id_} is in use by {names}"
            )


def named(names: Iterable[str]) -> str:
    """The first few, listed; takes no more of `names` than it needs."""
    # A port with two addresses in a subnet uses it twice.
    listed = list(islice(dict.fromkeys(islice(names, 2 * NAMED)), NAMED + 1))
    more = " and others" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more
