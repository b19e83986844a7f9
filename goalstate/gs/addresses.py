"""Addresses in one way of writing each: MAC addresses, IP addresses, prefixes.

Equality of addresses is equality of their text everywhere else, so whatever comes from outside is
brought into one form here or refused. Laws:

1.  A normalised text normalises to itself.
2.  Two texts that mean the same address normalise to equal texts (RFC 5952 for IPv6; lower-case
    hexadecimal with colons for MAC addresses).
3.  Nothing is guessed: host bits in a prefix, leading zeros, a zone or blanks are errors.

Packed addresses are big endian bytes: those of one family compare as the addresses do. inet_pton
is used instead of the ipaddress module, whose objects cost ten times as much.
"""

from __future__ import annotations

import re
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

NO_MAC = "00:00:00:00:00:00"
#: Bits of a packed IPv4 address; one of IPv6 has 128.
IPV4_BITS = 32
#: Up to this length an IPv4 prefix has a network and a broadcast address (RFC 3021).
_LAST_WITH_BROADCAST = 30

#: The two families, and the system's own conversion of their addresses: text of a family to packed
#: (OSError, or ValueError for a NUL, if it is none) and back to the canonical text.
FOUR, SIX = AF_INET, AF_INET6
pack, unpack = inet_pton, inet_ntop

#: Is this a MAC address of one interface in its normal form (or NO_MAC)?
# The lowest bit of the first byte would make it a group's address, which no interface has.
is_normal_mac = re.compile(r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}").fullmatch
_any_mac = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}").fullmatch


def mac(text: str) -> str:
    """The address of one interface, in lower case with colons. Raises ValueError, saying why."""
    lower = text.lower()
    if not _any_mac(lower):
        raise ValueError(f"{text!r} is no MAC address (expected as 02:00:5e:00:00:01)")
    normal = lower.replace("-", ":")
    if normal == NO_MAC:
        raise ValueError(f"{text!r} is no interface's address")
    if not is_normal_mac(normal):
        raise ValueError(f"{text!r} is the address of a group, not of an interface")
    return normal


def ip(text: str) -> tuple[str, bytes]:
    """An IP address as canonical text and packed. Raises ValueError, saying why."""
    try:
        if ":" not in text:
            return text, pack(FOUR, text)
        packed = pack(SIX, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no IP address") from None
    return unpack(SIX, packed), packed


class Prefix(NamedTuple):
    """A block of addresses; the ends are packed and belong to it."""

    text: str
    first: bytes
    last: bytes
    length: int

    @property
    def usable(self) -> tuple[bytes, bytes]:
        """First and last address that an interface may have: for IPv4 not those of the network
        and of its broadcast."""
        if len(self.first) == IPV4_BITS // 8 and self.length <= _LAST_WITH_BROADCAST:
            return _shifted(self.first, 1), _shifted(self.last, -1)
        return self.first, self.last

    def holds(self, other: Prefix) -> bool:
        """Is the other block within this one?"""
        return (
            len(self.first) == len(other.first)
            and self.first <= other.first
            and other.last <= self.last
        )


def prefix(text: str) -> Prefix:
    """A block, its text canonical. Raises ValueError, saying why."""
    address, slash, length_text = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} has no prefix length (expected as 10.0.0.0/24)")
    try:
        canonical, packed = ip(address)
    except ValueError:
        raise ValueError(f"{text!r} is no IP prefix") from None
    bits = len(packed) * 8
    # isdecimal alone lets digits of other scripts through.
    if not (length_text.isascii() and length_text.isdecimal()) or int(length_text) > bits:
        raise ValueError(f"{text!r} needs a prefix length from 0 to {bits}")
    length = int(length_text)
    host_bits = (1 << (bits - length)) - 1
    value = int.from_bytes(packed, "big")
    first = (value & ~host_bits).to_bytes(len(packed), "big")
    if first != packed:
        network = unpack(SIX if ":" in canonical else FOUR, first)
        raise ValueError(f"{text!r} has host bits set (its network is {network}/{length})")
    last = (value | host_bits).to_bytes(len(packed), "big")
    return Prefix(f"{canonical}/{length}", packed, last, length)


def _shifted(packed: bytes, by: int) -> bytes:
    return (int.from_bytes(packed, "big") + by).to_bytes(len(packed), "big")
