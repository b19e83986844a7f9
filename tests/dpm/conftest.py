"""Publishers that try again at once: no test waits for a pause meant for real brokers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from goalstate.dpm import checkpoints, engine, publisher, standby, succession

AT_ONCE = (0.001, 0.002)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(publisher, "BACKOFF_S", AT_ONCE)
    monkeypatch.setattr(succession, "BACKOFF_S", AT_ONCE)
    monkeypatch.setattr(checkpoints, "BACKOFF_S", AT_ONCE)
    monkeypatch.setattr(checkpoints, "LOOK_S", AT_ONCE[0])
    monkeypatch.setattr(engine, "PUBLISHED_NOTE_S", AT_ONCE[0])
    monkeypatch.setattr(standby, "ATTEMPT_S", 10 * AT_ONCE[0])
    monkeypatch.setattr(standby, "GATHER_S", AT_ONCE[0])
    # The default draws tracebacks with all their variables, which takes seconds.
    plain = structlog.processors.KeyValueRenderer()
    structlog.configure(processors=[structlog.processors.format_exc_info, plain])
    yield
    structlog.reset_defaults()
