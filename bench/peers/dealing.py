"""Hosts that share connections."""

from __future__ import annotations

from bench.peers.base import CONNECTIONS


def dealt(hosts: range) -> list[range]:
    """The hosts of each connection: as many connections as there may be, all in use."""
    count = min(CONNECTIONS, len(hosts))
    return [hosts[place::count] for place in range(count)]
