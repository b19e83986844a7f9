"""What is told of a histogram is what its library tells of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.scale.load.recording import Recorded, histogram, record_all
from goalstate.scale.load.stages import PERCENTILES

latencies_ns = st.one_of(
    st.integers(0, 10_000), st.integers(0, 10_000_000), st.integers(0, 3_600_000_000_000)
)


@pytest.mark.no_cover
@settings(max_examples=30)
@given(st.lists(latencies_ns, max_size=50), st.integers(1, 3))
def test_figures_are_those_of_the_library(latencies: list[int], times: int) -> None:
    of = histogram()
    for _ in range(times):
        record_all(of, np.array(latencies, dtype=np.int64))
    recorded = Recorded(of)
    assert recorded.mean() == pytest.approx(of.get_mean_value(), rel=1e-12)
    if latencies:
        expected = of.get_percentile_to_value_dict(list(PERCENTILES))
        assert {share: recorded.percentile(share) for share in PERCENTILES} == expected
