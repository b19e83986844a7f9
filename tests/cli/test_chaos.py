"""What `goalstate chaos` refuses, and what it says of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from goalstate.cli import chaos
from goalstate.cli.errors import InputError
from goalstate.cli.output import Output
from goalstate.scale.chaos.ledger import Finding, Law
from goalstate.scale.chaos.plan import Fault
from goalstate.scale.chaos.run import Result, Settings

FIGURES = {"seed": 1, "seconds": 1.0, "hosts": 4, "ports": 40, "rate": 1.0, "agents": 2}


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"broker": "docker"}, "'docker'"), ({"broker": "embedded", "agents": 5}, "5 agent")],
)
def test_a_run_that_cannot_be_is_refused(changed: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        chaos.chaos({**FIGURES, **changed}, None, None, Output(True))


def test_a_result_tells_what_was_found_of_each_law() -> None:
    result = Result(
        settings=Settings(**FIGURES, broker="embedded", directory=Path("d")),  # type: ignore[arg-type]
        findings=[Finding(Law.LOST, "one"), Finding(Law.LOST, "two")],
        faults=Counter({Fault.KILL_AGENT: 2}),
        mended={Fault.KILL_AGENT: [1.5, 0.5]},
        changes=Counter({("port moved", "accepted"): 3}),
        waits=Counter(),
    )
    found = chaos.document(result)
    assert not found["held"]
    assert found["laws"]["acknowledged change lost"] == 2
    assert found["laws"]["early wait"] == 0
    assert found["faults"] == {"agent process killed": 2}
    assert found["mended_s"] == {"agent process killed": [1.5, 0.5]}
    assert found["changes"] == [{"what": "port moved", "result": "accepted", "count": 3}]
