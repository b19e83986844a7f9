"""A TCP proxy between two parts, at which what passes can be held up, delayed and cut off.

Laws:

1.  While a link is cut no byte passes in either direction, and connections stay open: nobody is
    told. New ones are taken, and wait. After it is mended, what was held goes on, in order; but
    where one end has gone meanwhile the other is cut off, and what was held for it is lost, as it
    would be in a network.
2.  What is held is bounded: after that the sender is held up, as by a full window.
3.  Apache Pulsar tells a client at which address the broker is that serves a topic. A link puts its
    own address there, which has as many characters; so whoever came through a link stays on it.
    Only whole frames are passed on then, since an address may come in two pieces.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import Any

from goalstate.bus.process import free_ports

#: Bytes that are held in one direction of a connection.
_HELD_BYTES = 1 << 20
#: How often a port with as many digits is looked for.
_ATTEMPTS = 100


class Link:
    """One proxy. `target` is where it leads, HOST:PORT; it may change with time."""

    def __init__(self, target: str = "", *, rewrite: bool = False) -> None:
        """`rewrite`: put the own address in place of the target's, see law 3."""
        self.target = target
        self.address = ""
        self.is_cut = False
        #: Seconds that each byte is delayed.
        self.delay_s = 0.0
        self._rewrite = rewrite
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()

    async def start(self) -> str:
        """Listen on 127.0.0.1; gives the own address."""
        loop = asyncio.get_running_loop()
        for _ in range(_ATTEMPTS):
            (port,) = free_ports(1)
            self.address = f"127.0.0.1:{port}"
            if not self._rewrite or len(self.address) == len(self.target):
                break
        else:
            raise OSError(f"no port with as many digits as that of {self.target} is free")
        self._server = await loop.create_server(lambda: _Pair(self).near, "127.0.0.1", port)
        return self.address

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()

    def cut(self) -> None:
        self.is_cut = True

    def mend(self) -> None:
        """End cut and delay."""
        self.is_cut = False
        self.delay_s = 0.0
        for pair in list(self._pairs):
            pair.go_on()

    def reset(self) -> None:
        """Close all connections at once."""
        for pair in list(self._pairs):
            pair.abort()

    @property
    def rewriting(self) -> tuple[bytes, bytes] | None:
        """What is put in whose place in what comes from the target."""
        return (self.target.encode(), self.address.encode()) if self._rewrite else None


class _Pair:
    """One connection through a link: `near` is who came, `far` the target."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.near = _End(self)
        self.far = _End(self, rewriting=link.rewriting)
        self.near.other, self.far.other = self.far, self.near

    def begin(self) -> None:
        self.link._pairs.add(self)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        host, _, port = self.link.target.rpartition(":")
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.far, host, int(port))
        except (OSError, ValueError):
            self.abort()
            return
        if self.near.gone:
            self.abort()

    def go_on(self) -> None:
        if self.near.gone or self.far.gone:
            self.abort()
        else:
            self.near.flush()
            self.far.flush()

    def left(self) -> None:
        """One end has gone. While the link is cut the other one does not hear of it."""
        if not self.link.is_cut:
            self.near.finish()
            self.far.finish()
            self.link._pairs.discard(self)

    def abort(self) -> None:
        self.link._pairs.discard(self)
        for end in (self.near, self.far):
            end.gone = True
            if end.transport is not None:
                end.transport.abort()


class _End(asyncio.Protocol):
    """One of the two sockets; what comes in here goes out at the other."""

    other: _End

    def __init__(self, pair: _Pair, *, rewriting: tuple[bytes, bytes] | None = None) -> None:
        self.transport: Any = None
        self.gone = False
        self._pair = pair
        self._frames = _Frames(*rewriting) if rewriting is not None else None
        #: What came in, each piece with the time at which it may go out.
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self is self._pair.near:
            self._pair.begin()
        elif self._pair.near.gone and not self._pair.link.is_cut:
            self._pair.abort()
        else:
            self.other.flush()

    def data_received(self, data: bytes) -> None:
        if self._frames is not None:
            data = self._frames.whole(data)
            if not data:
                return
        link, out = self._pair.link, self.other.transport
        if not (link.is_cut or link.delay_s or self._held) and out is not None:
            out.write(data)
            return
        self._held.append((self._loop.time() + link.delay_s, data))
        self._held_bytes += len(data)
        if self._held_bytes > _HELD_BYTES:
            self.transport.pause_reading()
        self.flush()

    def flush(self) -> None:
        """Let out what may go out by now."""
        out, now = self.other.transport, self._loop.time()
        if self._pair.link.is_cut or out is None or self.transport is None:
            return
        waits = self._pair.link.delay_s > 0
        while self._held and (not waits or self._held[0][0] <= now):
            _, data = self._held.popleft()
            self._held_bytes -= len(data)
            out.write(data)
        if self._held and self._timer is None:
            self._timer = self._loop.call_at(self._held[0][0], self._on_time)
        if self._held_bytes <= _HELD_BYTES and not self.gone and not self.other.full:
            self.transport.resume_reading()

    def _on_time(self) -> None:
        self._timer = None
        self.flush()

    def finish(self) -> None:
        """Close it after what is still to go out here."""
        if self.transport is not None:
            self.transport.close()
        elif not self.gone:
            self._pair.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if self._timer is not None:
            self._timer.cancel()
        self._pair.left()

    full = False

    def pause_writing(self) -> None:
        self.full = True
        if self.other.transport is not None and not self.other.gone:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self.other.transport is not None and not self.other.gone:
            self.other.flush()


class _Frames:
    """Frames of Pulsar's protocol, each four bytes of its length and so many more."""

    _LENGTH = struct.Struct(">I")

    def __init__(self, old: bytes, new: bytes) -> None:
        self._old, self._new = old, new
        self._rest = bytearray()
        self._missing = 0  # bytes until the first frame in `_rest` is whole, at least

    def whole(self, data: bytes) -> bytes:
        """What is whole by now, with the address exchanged."""
        self._rest += data
        if len(self._rest) < self._missing:
            return b""
        end = 0
        while True:
            if len(self._rest) - end < self._LENGTH.size:
                self._missing = self._LENGTH.size
                break
            (length,) = self._LENGTH.unpack_from(self._rest, end)
            if len(self._rest) - end < self._LENGTH.size + length:
                self._missing = self._LENGTH.size + length
                break
            end += self._LENGTH.size + length
        found = bytes(self._rest[:end])
        del self._rest[:end]
        return found.replace(self._old, self._new)
