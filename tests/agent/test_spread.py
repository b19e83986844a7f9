"""What all hosts find at once they do not all mend at once; what one finds is mended soon."""

from __future__ import annotations

import pytest

from goalstate.agent.spread import SPREAD_LEAST_NS, SPREAD_MAX_NS, SPREAD_NS, moment
from goalstate.bus.base import EARLIEST
from goalstate.gs.streams import Mark
from tests.agent.rig import INBOX, STREAM, TOPICS, Rig, checkpoint, neighbor, subnet, vpc

LARGE = 2 * SPREAD_LEAST_NS // SPREAD_NS
HOSTS = 200


@pytest.fixture
def rig() -> Rig:
    """A host that holds much of a stream."""
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.on_vpc(*(neighbor(n) for n in range(LARGE)))
    return rig


def drift(rig: Rig) -> None:
    """Corrupt what the host holds, and let it find out."""
    rig.core.streams[STREAM].live.digest ^= 1
    rig.on_vpc(neighbor(LARGE))


def test_hosts_that_drift_together_read_again_at_moments_of_their_own(rig: Rig) -> None:
    stream = rig.core.streams[STREAM]
    span = stream.live.size() * SPREAD_NS
    moments = [moment(f"host-{n}", stream) for n in range(HOSTS)]
    assert all(0 <= one < span for one in moments)
    for tenth in range(10):
        in_it = [one for one in moments if tenth <= 10 * one / span < tenth + 1]
        assert HOSTS / 30 < len(in_it) < HOSTS / 5
    # Each has another one the next time, so that nobody is always last.
    rig.on_vpc(neighbor(LARGE))
    assert moment("host-1", stream) != moments[1]


def test_nobody_waits_longer_than_the_most(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goalstate.agent.spread.SPREAD_NS", SPREAD_MAX_NS)
    stream = rig.core.streams[STREAM]
    assert max(moment(f"host-{n}", stream) for n in range(HOSTS)) < SPREAD_MAX_NS


def test_until_its_moment_a_host_keeps_what_it_has_and_takes_what_comes(rig: Rig) -> None:
    drift(rig)
    follows = len(rig.follows)
    assert list(rig.exceptions().values()) == ["PENDING DIGEST"]
    rig.on_vpc(neighbor(LARGE + 1))
    assert rig.watermark() == Mark(1, 4)
    assert f"neighbor/port-{LARGE + 1}" in rig.in_plane()
    assert len(rig.follows) == follows
    assert rig.core.wakeup is not None
    rig.pass_time((rig.core.wakeup - rig.now) / 1e9)
    assert rig.follows[-1][:3] == (STREAM, TOPICS.of_stream(STREAM), EARLIEST)
    assert not rig.exceptions()
    assert rig.agrees()
    assert (rig.core.counters.mismatches, rig.core.counters.resyncs) == (1, 1)


def test_what_mends_itself_meanwhile_is_not_read_again(rig: Rig) -> None:
    drift(rig)
    rig.core.streams[STREAM].live.digest ^= 1
    rig.on_vpc(neighbor(LARGE + 1))
    assert not rig.exceptions()
    rig.pass_time(60)
    assert rig.core.counters.resyncs == 0


def test_a_position_that_is_gone_is_gone_for_many(rig: Rig) -> None:
    checkpoint(rig.broker, rig.vpc)
    rig.perform(rig.core.position_gone(STREAM, rig.now))
    assert rig.core.counters.resyncs == 0
    assert not rig.exceptions()
    rig.pass_time(SPREAD_LEAST_NS * 2 / 1e9 + 1)
    assert rig.core.counters.resyncs == 1
    assert rig.agrees()


def test_a_host_that_holds_little_or_nothing_does_not_wait(rig: Rig) -> None:
    rig.core.streams[INBOX].live.digest ^= 1
    assert moment("host-1", rig.core.streams[INBOX]) == 0
    new = Rig(host="host-2", beside=rig)
    new.run()
    assert moment("host-2", new.core.streams[INBOX]) == 0
