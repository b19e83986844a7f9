"""The region that the measurements of joins, restarts and failovers are made on: one large VPC.

Its ports are on hosts that nobody plays; those who are measured are hosts after these, which have
no port yet. `spread` is what other measurements of large VPCs build theirs with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from time import monotonic, sleep

from bench.system import CONVERGE_S, MeasurementFailed, System
from goalstate.bus.connect import connect
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import CheckpointPlace
from goalstate.gs.intent import Intent, Port
from goalstate.gs.streams import vpc_stream
from goalstate.scale.generate import Region

#: Hosts that the VPC's ports are on.
_OTHERS = 100
_PIECE = 5000
#: The log after the newest checkpoint has at most so many bytes for each port: about a tenth of
#: what the checkpoint has, and one is due after half of that.
_AFTER_BYTES = 20
#: Seconds between two looks.
_LOOK_S = 0.1


def spread(region: Region, number: int, ports: int, hosts: int) -> Iterator[Intent]:
    """VPC `number` with its first so many ports, on the first so many hosts in turn."""
    pieces = -(-ports // _PIECE)
    left = ports
    for intent in islice(region.vpc_intents(number, _PIECE), pieces):
        some = range(ports - left, ports - left + min(left, len(intent.ports)))
        left -= len(some)
        yield intent._replace(ports=tuple(on_host(region, number, n, n % hosts) for n in some))
    if left:
        raise MeasurementFailed(f"{left} of {ports} ports were not generated")


def on_host(region: Region, number: int, index: int, host: int) -> Port:
    """Port `index` of VPC `number`, on this host instead of where chance puts it."""
    return region.port(number, index)._replace(host_id=region.host(host).id)


class LargeVpc:
    """So many ports, and room for some more on `guests`, the hosts that are measured."""

    def __init__(self, ports: int, guests: int = 1, more: int = 1000) -> None:
        self.ports = ports
        self.first_guest = _OTHERS
        # Beside the guests' own: what makes a checkpoint due, some times.
        room = ports + more + 5 * self._enough
        self._region = Region(hosts=_OTHERS + guests, vpcs=(room,), dhcp_share=0)
        self.stream = vpc_stream(self._region.vpc_id(1))
        self._next = ports

    @property
    def settings(self) -> dict[str, object]:
        """Of the publisher, with which it writes checkpoints as often as that takes."""
        return {"checkpoint_min_bytes": _AFTER_BYTES * self.ports // 2, "checkpoint_factor": 0}

    def build(self, system: System) -> int:
        """Have it all accepted; gives the last change."""
        system.apply_all(self._region.host_intents())
        return system.apply_all(self._intents())[-1].change

    def _intents(self) -> Iterator[Intent]:
        return spread(self._region, 1, self.ports, _OTHERS)

    def more(self, *hosts: int) -> Intent:
        """One more port on each of these hosts."""
        ports = []
        for host in hosts:
            ports.append(on_host(self._region, 1, self._next, host))
            self._next += 1
        return Intent(ports=tuple(ports))

    def await_checkpoint(self, system: System) -> CheckpointPlace:
        """Wait for one after which there is little on the log. Raises MeasurementFailed."""
        end = monotonic() + CONVERGE_S
        known = None
        while monotonic() < end:
            place, after = asyncio.run(self._newest(system))
            if place is not None and after <= _AFTER_BYTES * self.ports:
                return place
            if place is not None and place != known:
                # What came on the log while it was written does not make the next one due.
                known = place
                system.apply(self.more(*([0] * self._enough)))
            sleep(_LOOK_S)
        raise MeasurementFailed(f"no checkpoint of {self.stream} was written")

    @property
    def _enough(self) -> int:
        """So many ports more make a checkpoint due."""
        return self.ports // 10 + 1

    async def _newest(self, system: System) -> tuple[CheckpointPlace | None, int]:
        """Where the log says that it is, and the bytes on the log after it."""
        topic = system.topics.of_stream(self.stream)
        bus = await connect(system.broker.url)
        try:
            message = await bus.last(topic)
            place = message and envelopes.from_properties(message.properties).checkpoint
            if not place:
                return None, 0
            after = [len(message.payload) async for message in bus.read_to_end(topic, place.log)]
            return place, sum(after)
        finally:
            await bus.close()
