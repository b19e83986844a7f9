"""The pytest plugin: options and fixtures, each a thin skin over the module of its name.

goalstate_broker ◀─ goalstate_region ◀─┬─ goalstate_dpm ◀─ goalstate_dpm_settings
(session)           (each test)        ├─ goalstate_agents
                                       ├─ goalstate_expected
goalstate_simulation (no broker)       ├─ goalstate_topics
                                       └─ goalstate_publisher
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, get_args

import pytest

from goalstate.bus import brokers
from goalstate.bus.brokers import Broker
from goalstate.bus.errors import BusError
from goalstate.testkit.agents import Agents
from goalstate.testkit.dpm import Dpm
from goalstate.testkit.expected import Expecting
from goalstate.testkit.process import BOUND
from goalstate.testkit.publisher import StreamPublisher
from goalstate.testkit.region import Region
from goalstate.testkit.simulation import Simulation
from goalstate.testkit.topics import TopicReader

#: Seconds before the same progress is told again.
_SAY_S = 10.0
_KINDS = get_args(brokers.Kind)
_BROKER = f"{', '.join(_KINDS)}, or the URL of one that runs (pulsar://…, embedded://…)"
#: Option without its prefix → what its value is called, its default, and its help.
_OPTIONS = {
    "broker": ("KIND|URL", "embedded", f"the broker that tests use: {_BROKER}"),
    "admin-url": ("URL", "", "admin REST API of a broker that is given by its URL"),
    "timeout": ("SECONDS", f"{BOUND:g}", "within which what tests wait for must come"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each may be on the command line, or in the configuration file (goalstate_broker = …)."""
    group = parser.getgroup("goalstate", "goalstate test kit")
    for name, (metavar, default, text) in _OPTIONS.items():
        explained = f"{text} (default: {default})" if default else text
        group.addoption(f"--goalstate-{name}", default=None, metavar=metavar, help=explained)
        parser.addini(f"goalstate_{name.replace('-', '_')}", text, default=default)


def _option(config: pytest.Config, name: str) -> str:
    # Where a test module enables the plugin, the command line was read before there was an option.
    given = config.getoption(f"--goalstate-{name}", default=None)
    return str(given or config.getini(f"goalstate_{name.replace('-', '_')}"))


def _bound(config: pytest.Config) -> float:
    text = _option(config, "timeout")
    try:
        bound = float(text)
    except ValueError:
        bound = 0.0
    if bound <= 0:
        pytest.fail(f"--goalstate-timeout: {text!r} is no number of seconds", pytrace=False)
    return bound


@pytest.fixture(scope="session")
def goalstate_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The broker that --goalstate-broker says, for the whole session; a URL is of one that runs.

    Where it cannot be had, what needs it fails, with what was tried.
    """
    config = request.config
    wanted = _option(config, "broker")
    url = wanted if "://" in wanted else None
    if url is None and wanted not in _KINDS:
        pytest.fail(f"--goalstate-broker: {wanted!r} is none: write {_BROKER}", pytrace=False)

    said: dict[str, float] = {}

    def progress(text: str) -> None:
        # A download may take minutes, and must not look like a hang; nor is each second news.
        reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        capture: Any = config.pluginmanager.get_plugin("capturemanager")
        news, now = text.partition(" (")[0], time.monotonic()
        if reporter is None or wanted == "embedded" or now < said.get(news, -math.inf) + _SAY_S:
            return
        said[news] = now
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            reporter.write_line(f"goalstate: {text}")

    kind: Any = "auto" if url else wanted
    admin_url = _option(config, "admin-url") or os.environ.get(brokers.ADMIN_VARIABLE, "")
    failure = ""
    try:
        broker = brokers.find(kind, url=url, admin_url=admin_url or None, progress=progress)
    except BusError as error:
        failure = f"no broker for the tests (--goalstate-broker {wanted}): {error}"
    if failure:
        pytest.fail(failure, pytrace=False)
    with broker:
        yield broker


@pytest.fixture
def goalstate_region(
    goalstate_broker: Broker,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Region]:
    """A region of this test's own: its processes are ended after it."""
    if goalstate_broker.ended:
        goalstate_broker.restart()  # a test killed it, and this is another one
    directory = tmp_path_factory.mktemp("goalstate")
    with Region(goalstate_broker, directory, bound=_bound(request.config)) as region:
        yield region


@pytest.fixture
def goalstate_dpm_settings() -> Mapping[str, object]:
    """Fields of `goalstate.dpm.config.DpmConfig` for `goalstate_dpm`: to be overridden."""
    return {}


@pytest.fixture
def goalstate_dpm(
    goalstate_region: Region, goalstate_dpm_settings: Mapping[str, object]
) -> Iterator[Dpm]:
    """A DPM as a process, which knows no hosts and no intent yet."""
    dpm = Dpm(goalstate_region, **goalstate_dpm_settings)
    yield dpm
    dpm.close()


@pytest.fixture
def goalstate_agents(goalstate_region: Region) -> Agents:
    """Starts our agents as processes; none runs yet."""
    return Agents(goalstate_region)


@pytest.fixture
def goalstate_expected(goalstate_region: Region) -> Expecting:
    """What each host must hold, by the independent oracle."""
    return Expecting(goalstate_region)


@pytest.fixture
def goalstate_topics(goalstate_region: Region) -> TopicReader:
    """What is on the topics, decoded."""
    return TopicReader(goalstate_region)


@pytest.fixture
def goalstate_publisher(goalstate_region: Region) -> StreamPublisher:
    """Writes streams message by message, where no DPM does."""
    return StreamPublisher(goalstate_region)


@pytest.fixture(scope="session")
def goalstate_simulation() -> Simulation:
    """The simulator of faults; needs no broker."""
    return Simulation()
