"""Names of gRPC's channel arguments: it takes any, and passes over what it does not know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc._cython import cygrpc

ROOT = Path(__file__).parents[1]
NAME = re.compile(r'"(grpc\.[a-z0-9_.]+)"')
NAMES = sorted(
    {
        name
        for room in ("bench", "deploy", "goalstate", "tests")
        for file in (ROOT / room).rglob("*.py")
        for name in NAME.findall(file.read_text())
    }
)


@pytest.fixture(scope="module")
def library() -> bytes:
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_is_one_that_grpc_knows(name: str, library: bytes) -> None:
    assert name.encode() in library
