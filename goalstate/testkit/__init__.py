"""The test kit for others: pytest fixtures to test an agent, a publisher or a broker against ours.

It is a pytest plugin, enabled by `pytest_plugins = ["goalstate.testkit"]` or `-p goalstate.testkit`
(the extra `goalstate[testkit]` installs pytest); README.md beside this file shows each fixture.
What the fixtures give is here too, for annotations, and for fixtures of another scope.

Laws:

1.  Nothing is shared between two tests but the broker: each test has a region of its own, under a
    name that nobody had before.
2.  Every process that the kit starts is ended by its id when its region closes, and by the kernel
    or its holder when the test process is killed (see `goalstate.bus.process`).
3.  The kit never waits for a time to pass, but for a condition that has a name and a bound. When
    it does not come, what fails says which, and has the end of the log of each process.

(PYTEST_DONT_REWRITE: what fails here says by itself what it has to say.)
"""

from goalstate.testkit.agents import Agents, Fleet
from goalstate.testkit.dpm import Dpm
from goalstate.testkit.errors import (
    BadMessage,
    ConditionNotMet,
    Differs,
    IntentRefused,
    KitError,
    LawBroken,
    NotAnswered,
    NotConverged,
    ProcessFailed,
)
from goalstate.testkit.expected import Expected, Expecting
from goalstate.testkit.process import BOUND, Process, until
from goalstate.testkit.publisher import StreamPublisher
from goalstate.testkit.region import Region
from goalstate.testkit.simulation import Simulation
from goalstate.testkit.topics import Read, TopicReader

__all__ = [
    "BOUND",
    "Agents",
    "BadMessage",
    "ConditionNotMet",
    "Differs",
    "Dpm",
    "Expected",
    "Expecting",
    "Fleet",
    "IntentRefused",
    "KitError",
    "LawBroken",
    "NotAnswered",
    "NotConverged",
    "Process",
    "ProcessFailed",
    "Read",
    "Region",
    "Simulation",
    "StreamPublisher",
    "TopicReader",
    "until",
]

#: Fixtures and options, which need pytest: only pytest imports them.
pytest_plugins = ["goalstate.testkit.plugin"]
