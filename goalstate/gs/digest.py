"""Order-independent digest of a set of resources.

The digest of a set is the sum, modulo 2^128, of the hashes of its members; a change of one member
costs one subtraction and one addition, whatever the size of the set. The hash of a member covers
kind, id, revision and content (id and revision are inside the payload). XXH3-128 is not
cryptographic: the digest finds drift and loss, it does not defend against a forger, who could not
write to the stream in the first place.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from goalstate.gs.resources import Kind, Resource

MASK = (1 << 128) - 1
EMPTY = 0

_hash = xxhash.xxh3_128_intdigest


def item(kind: Kind, payload: bytes) -> int:
    """The hash of one resource, 128 bits. The kind seeds it: equal bytes of two kinds differ."""
    return _hash(payload, kind + 1)


def of(resources: Iterable[Resource]) -> int:
    """The digest of a set of resources; deletions count for nothing."""
    return sum(item(r.kind, r.payload) for r in resources if r.payload) & MASK


def to_bytes(digest: int) -> bytes:
    """16 bytes, big endian."""
    return digest.to_bytes(16, "big")


def to_hex(digest: int) -> str:
    return f"{digest:032x}"


def checksum(payload: bytes) -> str:
    """Of a message's bytes, 16 hexadecimal digits: what one who does not decode can check."""
    return xxhash.xxh3_64_hexdigest(payload)
