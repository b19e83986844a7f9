"""Data planes: what an agent programs.

A data plane takes one program at a time and answers it once, at once or later. Operations are
resources in the order in which they must take effect; one without a payload is a deletion.

`MemoryDataPlane` is a few tables. `ModelledDataPlane` takes the time that a real one would, by a
model that is a pure function of a seed, and refuses what it is told to refuse; the timer is the
caller's. Neither draws a clock or a loop in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from random import Random
from typing import NamedTuple, Protocol, runtime_checkable

import xxhash

from goalstate.agent.actions import Refusal
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import CONFIGURATION, Kind, Resource, references

#: Place of an operation in its program → why it was refused.
Refused = Mapping[int, Refusal]
Done = Callable[[Refused], None]
#: Calls back after a number of seconds.
Later = Callable[[float, Callable[[], None]], object]

L2 = resources_pb2.L2
L3 = resources_pb2.L3

#: From so many operations on, the sum of their times is drawn as one number.
_SUMMED = 64


class DataPlane(Protocol):
    def program(self, operations: Sequence[Resource], done: Done) -> None:
        """Do the operations in their order, then call `done`, once."""
        ...


@runtime_checkable
class Readable(Protocol):
    """A data plane that can say what it holds."""

    def read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        """Call `done`, once, with the payloads of a kind by id, good until it returns."""
        ...


def neighbor_type(subnet_id: str, local_subnets: Collection[str]) -> int:
    """How a host reaches a neighbor at an address of a subnet.

    L2 if the host has a port in that subnet itself, else L3: through the router. It is derived
    here and not sent, because it is another for each host.
    """
    return L2 if subnet_id in local_subnets else L3


class NextHop(NamedTuple):
    """Where a host sends a packet for an address of a VPC."""

    neighbor_id: str
    mac_address: str
    host_ip_address: str
    host_mac_address: str
    #: L2 or L3
    type: int


class MemoryDataPlane:
    """Tables in memory. Refuses nothing."""

    def __init__(self) -> None:
        #: Payloads by kind and id.
        self.tables: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        # By VPC and address, the neighbors that have it; made when somebody asks.
        self._index: dict[tuple[str, str], dict[str, str]] | None = None

    def program(self, operations: Sequence[Resource], done: Done) -> None:
        tables = self.tables
        self._index = None
        for kind, id_, _, payload in operations:
            if payload:
                tables[kind][id_] = payload
            else:
                tables[kind].pop(id_, None)
        done({})

    def read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        done(self.tables[kind])

    def local_subnets(self) -> set[str]:
        """The subnets in which the host has ports."""
        parse = resources_pb2.PortConfiguration.FromString
        return {
            ip.subnet_id for port in self.tables[Kind.PORT].values() for ip in parse(port).fixed_ips
        }

    def next_hop(self, vpc_id: str, ip_address: str) -> NextHop | None:
        """Where a packet for an address of a VPC goes; None: it is dropped."""
        if self._index is None:
            self._index = self._indexed()
        subnet_of = self._index.get((vpc_id, ip_address))
        if not subnet_of:
            return None
        id_ = min(subnet_of)
        neighbor = resources_pb2.NeighborConfiguration.FromString(self.tables[Kind.NEIGHBOR][id_])
        return NextHop(
            id_,
            neighbor.mac_address,
            neighbor.host_ip_address,
            neighbor.host_mac_address,
            neighbor_type(subnet_of[id_], self.local_subnets()),
        )

    def missing_references(self) -> list[str]:
        """What entries refer to and is not there, as `kind/id → kind/id`, sorted."""
        missing = []
        for kind, table in self.tables.items():
            for id_, payload in table.items():
                config = CONFIGURATION[kind].FromString(payload)
                for other, other_id in references(kind, config):
                    if other_id and other_id not in self.tables[other]:
                        missing.append(
                            f"{kind.name.lower()}/{id_} → {other.name.lower()}/{other_id}"
                        )
        return sorted(missing)

    def _indexed(self) -> dict[tuple[str, str], dict[str, str]]:
        index: dict[tuple[str, str], dict[str, str]] = {}
        for id_, payload in self.tables[Kind.NEIGHBOR].items():
            neighbor = resources_pb2.NeighborConfiguration.FromString(payload)
            subnet = neighbor.fixed_ips[0].subnet_id if neighbor.fixed_ips else ""
            for ip in neighbor.fixed_ips:
                index.setdefault((neighbor.vpc_id, ip.ip_address), {})[id_] = ip.subnet_id
            for pair in neighbor.allow_address_pairs:
                index.setdefault((neighbor.vpc_id, pair.ip_address), {})[id_] = subnet
        return index


class ProgrammingModel(NamedTuple):
    """How long programs take, and what is refused.

    A program takes one lognormal time for itself and one for each of its operations, with the given
    medians and the shape `sigma` (0: exactly the median). From 64 operations on their sum is drawn
    from the normal distribution that it tends to. The defaults are of the size that flow updates of
    a software switch have; they are not a measurement of one.

    A resource is refused if its id matches one of `refuse_ids` (patterns of fnmatch), or if a hash
    of seed, kind, id and revision falls into `refuse_share`: the same resource meets the same fate
    on every path. Deletions are never refused. That is for good, unless `refuse_times` says how
    often a revision of a resource is refused before it is taken.
    """

    seed: int = 0
    program_ms: float = 2.0
    operation_us: float = 50.0
    sigma: float = 0.5
    refuse_share: float = 0.0
    refuse_ids: tuple[str, ...] = ()
    refuse_times: int = 0

    def seconds(self, operations: int, random: Random) -> float:
        """How long a program of so many operations takes."""
        time = self._lognormal(self.program_ms / 1e3, random)
        each = self.operation_us / 1e6
        if operations < _SUMMED or not self.sigma:
            return time + sum(self._lognormal(each, random) for _ in range(operations))
        variance = math.exp(self.sigma**2)
        mean = each * math.sqrt(variance)
        deviation = mean * math.sqrt(variance - 1)
        total = random.gauss(operations * mean, math.sqrt(operations) * deviation)
        return time + max(0.0, total)

    def refused(self, operations: Sequence[Resource]) -> dict[int, Refusal]:
        """What of a program is refused, and why."""
        if not self.refuse_share and not self.refuse_ids:
            return {}
        transient = self.refuse_times > 0
        refused = {}
        for place, (kind, id_, revision, payload) in enumerate(operations):
            if not payload:
                continue
            if any(fnmatchcase(id_, pattern) for pattern in self.refuse_ids):
                refused[place] = Refusal("injected failure: the id matches", transient)
            elif self.refuse_share:
                drawn = xxhash.xxh3_64_intdigest(f"{kind:d}/{id_}/{revision}".encode(), self.seed)
                if drawn < self.refuse_share * 2.0**64:
                    refused[place] = Refusal("injected failure: drawn", transient)
        return refused

    def _lognormal(self, median: float, random: Random) -> float:
        return median * math.exp(self.sigma * random.gauss(0.0, 1.0)) if self.sigma else median


class ModelledDataPlane:
    """Tables in memory that take their time to change."""

    def __init__(self, model: ProgrammingModel, later: Later, *, name: str = "") -> None:
        """Data planes of one model draw their times apart from each other by their `name`."""
        self.table = MemoryDataPlane()
        self._model = model
        self._later = later
        self._random = Random(f"{model.seed}/{name}")
        #: How often each revision was refused so far that is not refused for good.
        self._refusals = Counter[tuple[Kind, str, int]]()

    def program(self, operations: Sequence[Resource], done: Done) -> None:
        seconds = self._model.seconds(len(operations), self._random)
        self._later(seconds, partial(self._finish, operations, done))

    def read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        self._later(self._model.program_ms / 1e3, partial(self.table.read_back, kind, done))

    def _finish(self, operations: Sequence[Resource], done: Done) -> None:
        refused = self._still(operations, self._model.refused(operations))
        if refused:
            operations = [one for place, one in enumerate(operations) if place not in refused]
        self.table.program(operations, lambda _: None)
        done(refused)

    def _still(self, operations: Sequence[Resource], refused: Refused) -> Refused:
        """Without what was refused often enough."""
        still = {}
        for place, refusal in refused.items():
            name = operations[place][:3]
            if not refusal.transient:
                still[place] = refusal
            elif self._refusals[name] < self._model.refuse_times:
                self._refusals[name] += 1
                still[place] = refusal
            else:
                del self._refusals[name]
        return still
