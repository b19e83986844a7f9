"""Opens the right bus for a broker's URL."""

from __future__ import annotations

from goalstate.bus.base import Bus
from goalstate.bus.errors import BusError


async def connect(url: str, *, compression: str = "lz4") -> Bus:
    """A bus for `pulsar://…`, `pulsar+ssl://…` or `embedded://…`.

    `compression` (none, lz4, zstd) is of what is sent to Pulsar. Raises BrokerUnreachable, and
    BusError for a URL of another kind.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme in ("pulsar", "pulsar+ssl"):
        from goalstate.bus.pulsar import PulsarBus  # noqa: PLC0415 - a large library

        return await PulsarBus.connect(url, compression=compression)
    if separator and scheme == "embedded":
        from goalstate.bus.embedded import EmbeddedBus  # noqa: PLC0415 - not both

        return await EmbeddedBus.connect(url)
    raise BusError(f"{url!r} is no broker's URL (expected pulsar://HOST:PORT or embedded://…)")
