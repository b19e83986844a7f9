"""The changes that a generator makes, one after the other, to a region that it knows. Pure.

Laws:

1.  A change is valid whatever other changes are under way: what one touches is touched by no other
    until that is answered, and generators share no ports, and no VPC of which they change a whole.
2.  What is drawn follows from the seed, and from which changes were answered by then.
3.  A VPC is chosen by its ports: of two, the one with twice as many changes twice as often.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from itertools import accumulate
from random import Random
from typing import NamedTuple

from goalstate.gs.intent import Deletion, Intent, ObjectKind, Port
from goalstate.scale import generate
from goalstate.scale.generate import Region
from goalstate.scale.load.workload import ChangeKind, Phase, parse_numbers

K = ChangeKind
#: The group that ports join and leave, and the one that loses a rule.
_JOINED = "web"
_GROUP = "default"
_RULE = "members"
#: So often it is drawn anew where what was drawn has nothing that the kind could be made of.
_TRIES = 8


class Change(NamedTuple):
    kind: ChangeKind
    #: Number of the VPC.
    vpc: int
    #: Indexes of the ports that it touches; none where it is of a whole VPC or a group.
    ports: tuple[int, ...]
    intent: Intent
    #: The ports as they are once it is accepted.
    after: tuple[Port, ...] = ()


class _Vpc:
    """What of one VPC is this generator's, and not under way."""

    def __init__(self, live: list[int], free: list[int]) -> None:
        self.live = live
        self.free = free
        #: Ports that are not as the region makes them.
        self.altered: dict[int, Port] = {}
        self.revoked = False
        self.busy = False


class ChangeSource:
    """Of generator `part` of `parts`."""

    def __init__(
        self, region: Region, vpcs: int, random: Random, *, part: int = 0, parts: int = 1
    ) -> None:
        """The region's first `vpcs` VPCs are there; the others are to be created."""
        self._region = region
        self._random = random
        self._part, self._parts = part, parts
        self._vpcs = {
            number: _Vpc(
                list(range(part, region.vpcs[number - 1], parts)),
                self._room(number, part, parts),
            )
            for number in range(1, vpcs + 1)
        }
        self._sizes = dict(enumerate(region.vpcs[:vpcs], 1))
        self._unmade = [n for n in range(vpcs + 1, len(region.vpcs) + 1) if self._mine(n)]
        self._unmade.reverse()
        self._made: list[int] = []
        self._choices: dict[str, tuple[list[int], list[int]]] = {}
        self._makers: dict[ChangeKind, Callable[[int, int], Change | None]] = {
            K.CREATE_PORTS: self._create,
            K.DELETE_PORTS: self._delete,
            K.MOVE_PORTS: self._move,
            K.JOIN_GROUP: self._join,
            K.LEAVE_GROUP: self._leave,
            K.REVOKE_RULE: self._revoke,
            K.RESTORE_RULE: self._restore,
        }

    def draw(self, phase: Phase) -> Change | None:
        """The next change of a phase; None: there is none to be made just now, since all that it
        could be made of is gone, or under way."""
        kinds = {kind: w for kind, w in phase.changes.items() if kind is not K.JOIN_HOST}
        while kinds:
            (kind,) = self._random.choices(list(kinds), list(kinds.values()))
            change = self._draw(kind, phase)
            if change is not None:
                return change
            del kinds[kind]
        return None

    def _mine(self, vpc: int) -> bool:
        """Is it ours to change it as a whole?"""
        return vpc % self._parts == self._part

    def done(self, change: Change, *, accepted: bool) -> None:
        """A change that was drawn is answered: it came to be, or nothing of it did."""
        kind = change.kind
        if kind in (K.CREATE_VPC, K.DELETE_VPC):
            there = accepted == (kind is K.CREATE_VPC)
            (self._made if there else self._unmade).append(change.vpc)
            return
        vpc = self._vpcs[change.vpc]
        if kind in (K.REVOKE_RULE, K.RESTORE_RULE):
            vpc.busy = False
            if accepted:
                vpc.revoked = kind is K.REVOKE_RULE
            return
        there = {K.CREATE_PORTS: accepted, K.DELETE_PORTS: not accepted}.get(kind, True)
        (vpc.live if there else vpc.free).extend(change.ports)
        if not there:
            for index in change.ports:
                vpc.altered.pop(index, None)
        elif accepted and kind is not K.CREATE_PORTS:
            vpc.altered.update(zip(change.ports, change.after, strict=True))

    # --- kinds ---

    def _draw(self, kind: ChangeKind, phase: Phase) -> Change | None:
        if kind is K.CREATE_VPC:
            return self._create_vpc()
        if kind is K.DELETE_VPC:
            return self._delete_vpc()
        for _ in range(_TRIES):
            change = self._makers[kind](self._vpc(phase.vpcs), phase.ports)
            if change is not None:
                return change
        return None

    def _create(self, number: int, count: int) -> Change | None:
        chosen = self._take(self._vpcs[number].free, count)
        ports = tuple(self._region.port(number, index) for index in chosen)
        return self._of_ports(K.CREATE_PORTS, number, chosen, Intent(ports=ports), ports)

    def _delete(self, number: int, count: int) -> Change | None:
        chosen = self._take(self._vpcs[number].live, count)
        deletes = tuple(
            Deletion(ObjectKind.PORT, self._region.port(number, index).id, cascade=True)
            for index in chosen
        )
        return self._of_ports(K.DELETE_PORTS, number, chosen, Intent(deletes=deletes), ())

    def _move(self, number: int, count: int) -> Change | None:
        return self._alter(K.MOVE_PORTS, number, count, self._moved)

    def _join(self, number: int, count: int) -> Change | None:
        group = self._region.group_id(number, _JOINED)
        return self._alter(
            K.JOIN_GROUP,
            number,
            count,
            lambda port: (
                None
                if group in port.security_group_ids
                else port._replace(security_group_ids=(*port.security_group_ids, group))
            ),
        )

    def _leave(self, number: int, count: int) -> Change | None:
        group = self._region.group_id(number, _JOINED)
        return self._alter(
            K.LEAVE_GROUP,
            number,
            count,
            lambda port: (
                port._replace(
                    security_group_ids=tuple(g for g in port.security_group_ids if g != group)
                )
                if group in port.security_group_ids
                else None
            ),
        )

    def _revoke(self, number: int, count: int) -> Change | None:
        return self._rule(K.REVOKE_RULE, number)

    def _restore(self, number: int, count: int) -> Change | None:
        return self._rule(K.RESTORE_RULE, number)

    def _rule(self, kind: ChangeKind, number: int) -> Change | None:
        vpc = self._vpcs[number]
        if not self._mine(number) or vpc.busy or vpc.revoked != (kind is K.RESTORE_RULE):
            return None
        group = self._region.group(number, _GROUP)
        intent = Intent(security_groups=(group,))
        if kind is K.REVOKE_RULE:
            intent = generate.revoke_rule(group, f"{group.id}-{_RULE}")
        vpc.busy = True
        return Change(kind, number, (), intent)

    def _create_vpc(self) -> Change | None:
        if not self._unmade:
            return None
        number = self._unmade.pop()
        (intent,) = self._region.vpc_intents(number, self._region.vpcs[number - 1])
        return Change(K.CREATE_VPC, number, (), intent)

    def _delete_vpc(self) -> Change | None:
        if not self._made:
            return None
        number = self._made.pop(0)
        return Change(K.DELETE_VPC, number, (), generate.delete_vpc(self._region.vpc_id(number)))

    # --- ports ---

    def _alter(
        self, kind: ChangeKind, number: int, count: int, alter: Callable[[Port], Port | None]
    ) -> Change | None:
        live = self._vpcs[number].live
        chosen = self._take(live, count)
        altered = {index: alter(self._port(number, index)) for index in chosen}
        live.extend(index for index, port in altered.items() if port is None)
        ports = {index: port for index, port in altered.items() if port is not None}
        made = tuple(ports.values())
        return self._of_ports(kind, number, tuple(ports), Intent(ports=made), made)

    def _moved(self, port: Port) -> Port | None:
        host = self._region.host(self._random.randrange(self._region.hosts)).id
        return port._replace(host_id=host) if host != port.host_id else None

    def _of_ports(
        self,
        kind: ChangeKind,
        number: int,
        chosen: tuple[int, ...],
        intent: Intent,
        after: tuple[Port, ...],
    ) -> Change | None:
        return Change(kind, number, chosen, intent, after) if chosen else None

    def _port(self, number: int, index: int) -> Port:
        altered = self._vpcs[number].altered.get(index)
        return altered if altered is not None else self._region.port(number, index)

    def _take(self, indexes: list[int], count: int) -> tuple[int, ...]:
        """Up to so many of them, by chance; they are out of the list then."""
        taken = []
        for _ in range(min(count, len(indexes))):
            place = self._random.randrange(len(indexes))
            indexes[place], indexes[-1] = indexes[-1], indexes[place]
            taken.append(indexes.pop())
        return tuple(taken)

    def _vpc(self, only: str) -> int:
        if only not in self._choices:
            chosen = sorted(parse_numbers(only) or self._sizes)
            self._choices[only] = chosen, list(accumulate(self._sizes[n] for n in chosen))
        numbers, sums = self._choices[only]
        return numbers[bisect(sums, self._random.randrange(sums[-1]))]

    def _room(self, number: int, part: int, parts: int) -> list[int]:
        """Indexes of ports that are not there and could be."""
        first, last = self._region.vpcs[number - 1], self._region.room(number)
        return [index for index in range(first, last) if index % parts == part]
