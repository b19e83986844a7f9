"""What tests of agents share."""

from __future__ import annotations

import pytest


@pytest.fixture
def through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy, at which nobody answers."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
