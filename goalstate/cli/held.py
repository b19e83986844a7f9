"""What one host holds, as its inspection service tells it, in a form that can be asked.

Law: what a host cannot say (a counting host does not decode the streams of VPCs and security
groups) is told apart from what it does not hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from goalstate.gs.packing import subscriptions, unpack
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import HostSummary, ResourceException
from goalstate.gs.resources import Kind

#: Kinds that come on a host's inbox, which a counting host decodes too.
_INBOX = frozenset({Kind.PORT, Kind.DHCP, Kind.SUBSCRIPTION})


class Held:
    """The applied state of one host."""

    def __init__(self, summary: HostSummary) -> None:
        self.summary = summary
        self.host = summary.host
        #: Why a resource is not applied, by kind and id, as the host says.
        self.exceptions: dict[tuple[int, str], str] = {
            (exception.type, exception.id): _why(exception) for exception in summary.exceptions
        }
        self._configs: dict[Kind, dict[str, Any]] = defaultdict(dict)

    def add(self, stream: str, state: Any) -> None:
        """Take in a piece (GoalStateV2) of what the host holds of a stream."""
        for resource, config in unpack(state):
            self._configs[resource.kind][resource.id] = config
        for section in state.host_resources.values():
            for resource, config in subscriptions(section):
                self._configs[resource.kind][resource.id] = config

    def get(self, kind: Kind, id_: str) -> Any:
        """The configuration that the host holds, None if it holds none."""
        return self._configs[kind].get(id_)

    def all(self, kind: Kind) -> Iterable[Any]:
        """Configurations of a kind, ordered by id."""
        return [config for _, config in sorted(self._configs[kind].items())]

    def count(self, kind: Kind) -> int:
        return len(self._configs[kind])

    def cannot_say(self, kind: Kind) -> bool:
        """Is the absence of a resource of this kind no sign that it is not applied?"""
        return self.summary.counting and kind not in _INBOX

    @cached_property
    def _by_address(self) -> dict[tuple[str, str], list[Any]]:
        entries: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for config in self.all(Kind.NEIGHBOR):
            for end in (*config.fixed_ips, *config.allow_address_pairs):
                entries[config.vpc_id, end.ip_address].append(config)
        return entries

    def neighbors_at(self, vpc_id: str, ip: str) -> list[Any]:
        """Neighbors that have an IP address; to be asked when everything was added."""
        return self._by_address.get((vpc_id, ip), [])


def _why(exception: ResourceException) -> str:
    status = ResourceException.Status.Name(exception.status).lower()
    return f"{status}: {exception.reason}" if exception.reason else status
