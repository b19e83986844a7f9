"""Names and addresses of simulated hosts, so that whoever generates a region and whoever plays its
hosts agree without a file between them."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

#: Hosts of one rack share an inbox topic.
GROUP_SIZE = 40
_UNDERLAY = int(ipaddress.IPv4Address("100.64.0.0"))
_UNDERLAY_SIZE = 1 << 22  # RFC 6598's shared address space, 100.64.0.0/10


class SimulatedHost(NamedTuple):
    id: str
    group: str
    ip_address: str
    mac_address: str


def simulated_host(
    index: int, *, prefix: str = "host", group_size: int = GROUP_SIZE
) -> SimulatedHost:
    """Host number `index` (from 0) of a simulated region.

    Raises ValueError below 0, and from 4,194,302 on, where the underlay's addresses end.
    """
    if not 0 <= index < _UNDERLAY_SIZE - 2:
        raise ValueError(f"there is no simulated host number {index}")
    number = index + 1
    mac = ":".join(f"{b:02x}" for b in (0x02, 0x00, *number.to_bytes(4, "big")))
    return SimulatedHost(
        id=f"{prefix}-{index:06d}",
        group=f"{prefix}-rack-{index // group_size:05d}",
        ip_address=str(ipaddress.IPv4Address(_UNDERLAY + number)),
        mac_address=mac,
    )
