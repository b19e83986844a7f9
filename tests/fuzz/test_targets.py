"""Whatever bytes come, each reader of them answers or refuses by name (see fuzz/targets.py)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS

#: Runs that take a whole publisher each are fewer.
EXAMPLES = {"service": 40, "message": 150, "push": 150, "intent": 150, "yaml": 150}


@st.composite
def spoiled(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A good input, cut, with bytes of it replaced, doubled or taken from another one."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 16)))
        other = draw(st.sampled_from(samples))
        begin = draw(st.integers(0, len(other)))
        piece = draw(st.binary(max_size=8) | st.just(other[begin : begin + 32]) | st.just(b""))
        data = data[:at] + piece + data[to:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_no_findings(name: str) -> None:
    for sample in TARGETS[name].samples():
        TARGETS[name].run(sample)


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_bring_a_reader_down(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES.get(name, 500),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(spoiled(target.samples()) | st.binary(max_size=200))
    def run(data: bytes) -> None:
        target.run(data)

    run()
