"""Brokers for every room's tests: started once for the whole test session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from goalstate.bus import brokers
from goalstate.bus.errors import BrokerFailed, BrokerNotFound

# Property tests are reproducible: the same examples on each run, and no clock decides.
settings.register_profile("goalstate", derandomize=True, deadline=None)
settings.load_profile("goalstate")

#: The kit for others; its fixtures are ours too.
pytest_plugins = ["goalstate.testkit"]


@pytest.fixture(scope="session")
def apache_broker() -> Iterator[brokers.Broker]:
    """A real Apache Pulsar. Where none can be had: a skip, or with CI=true a failure."""
    try:
        broker = brokers.find("apache", env={**os.environ, brokers.URL_VARIABLE: ""})
    except (BrokerNotFound, BrokerFailed) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Apache Pulsar here: {error}")
    with broker:
        yield broker


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[brokers.Broker]:
    """The embedded broker, as a process of its own."""
    with brokers.find("embedded", env={}) as broker:
        yield broker
