"""The state file, and fleets that begin with it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from goalstate.agent import storing
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Member
from goalstate.agent.state import Head, StoredStream, Update
from goalstate.agent.state_file import ASIDE, StateFile
from goalstate.gs import digest as digests
from goalstate.gs.resources import Kind
from goalstate.gs.streams import Mark, inbox_stream
from goalstate.process import StartError
from tests.agent.fleet_rig import FleetRig, wait_until
from tests.agent.rig import (
    STREAM,
    TOPICS,
    Publisher,
    checkpoint,
    gone,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)

HOSTS = ["h0", "h1"]
MEMBERS = [Member(host, "rack-0") for host in HOSTS]
HELD = [vpc(), subnet(), *(neighbor(n) for n in range(3))]
DEAD = [gone(neighbor(7)), gone(neighbor(8))]
INBOX = inbox_stream("rack-0")


def head(number: int, *resources: object) -> Head:
    digest = digests.of(resources)  # type: ignore[arg-type]
    return Head("topic", False, Mark(1, number), b"\x00p", digest, None)


def opened(directory: Path, region: str = "region", hosts: list[str] = HOSTS) -> StateFile:
    return StateFile.open(directory, region, hosts)


def test_what_was_written_is_loaded(tmp_path: Path) -> None:
    file = opened(tmp_path / "made")
    counting = Head("other", True, Mark(2, 7), b"", 0, 2**128 - 1)
    file.write(
        [
            Update("h0", STREAM, head(1, *HELD), True, [*HELD, *DEAD]),
            Update("h0", INBOX, counting, True),
            Update("h1", STREAM, head(1, *HELD), True, HELD),
        ]
    )
    file.close()
    file = opened(tmp_path / "made")
    stored = file.load()
    assert stored == {
        "h0": [
            StoredStream(STREAM, head(1, *HELD), [*HELD, *DEAD]),
            StoredStream(INBOX, counting, []),
        ],
        "h1": [StoredStream(STREAM, head(1, *HELD), HELD)],
    }
    # Hosts share the bytes of what both hold.
    one, other = (stored[host][0].resources[2].payload for host in HOSTS)
    assert one is other
    file.close()


def test_a_batch_changes_what_it_names(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write(
        [
            Update("h0", STREAM, head(1), True, [*HELD, DEAD[0]]),
            Update("h1", STREAM, head(1), True, HELD),
            Update("h1", INBOX, head(1), True, [port(1)]),
        ]
    )
    newer, dead = neighbor(1, 2), gone(neighbor(2))
    file.write(
        [
            Update("h0", STREAM, head(2), False, [newer, dead], [(DEAD[0].kind, DEAD[0].id)]),
            Update("h1", STREAM, None),
            Update("h1", INBOX, head(2), True, [port(2)]),
        ]
    )
    assert file.load() == {
        "h0": [StoredStream(STREAM, head(2), [*HELD[:3], newer, dead])],
        "h1": [StoredStream(INBOX, head(2), [port(2)])],
    }
    file.close()


def test_a_batch_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write([Update("h0", STREAM, head(1), True, HELD)])
    broken = neighbor(1)._replace(revision=2**70)
    with pytest.raises((sqlite3.Error, OverflowError)):
        file.write(
            [
                Update("h0", STREAM, head(2), True, [vpc(2)]),
                Update("h1", STREAM, head(2), True, [broken]),
            ]
        )
    assert file.load() == {"h0": [StoredStream(STREAM, head(1), HELD)]}
    file.close()


def test_payloads_that_nobody_has_are_dropped_when_the_file_is_opened(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.write([Update("h0", STREAM, head(1), True, HELD)])
    file.write([Update("h0", STREAM, head(2), True, HELD[:2])])
    file.close()
    file = opened(tmp_path)
    file.close()
    with sqlite3.connect(file.path) as connection:
        assert connection.execute("SELECT count(*) FROM payloads").fetchone() == (2,)
    connection.close()


def _text(path: Path) -> None:
    path.write_text("no database, whatever its name says. " * 100)


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 100] = b"\xff" * (len(content) - 4196)
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE something (else_ TEXT)")
    connection.commit()
    connection.close()


def _format(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = '0' WHERE name = 'format'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("spoil", [_text, _damage, _foreign, _format])
def test_a_file_that_cannot_be_used_is_set_aside(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    file = opened(tmp_path)
    file.write([Update("h0", STREAM, head(1), True, HELD)])
    file.close()
    spoil(file.path)
    content = file.path.read_bytes()
    file = opened(tmp_path)
    assert file.load() == {}
    assert file.path.with_name(file.path.name + ASIDE).read_bytes() == content
    file.write([Update("h0", STREAM, head(1), True, HELD)])
    assert len(file.load()) == 1
    file.close()


def _loaded(directory: Path) -> dict[str, list[StoredStream]]:
    """What an agent that starts finds, and that it can store anew."""
    file = opened(directory)
    stored = file.load()
    file.write([Update("h1", INBOX, head(9), True, [port(9)])])
    file.close()
    return stored


def test_of_a_file_with_a_flipped_bit_or_a_lost_end_all_is_loaded_or_nothing_of_a_stream(
    tmp_path: Path,
) -> None:
    file = opened(tmp_path)
    file.write(
        [
            Update("h0", STREAM, head(1, *HELD), True, [*HELD, *DEAD]),
            Update("h0", INBOX, head(2, port(1)), True, [port(1)]),
        ]
    )
    stored = file.load()["h0"]
    file.close()
    whole = file.path.read_bytes()
    written = [place for place, byte in enumerate(whole) if byte]
    broken = [whole[:length] for length in range(0, len(whole), 1021)]
    for number, place in enumerate(written[::9]):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << number % 8
        broken.append(bytes(flipped))
    for content in broken:
        file.path.write_bytes(content)
        found = _loaded(tmp_path)
        assert found.keys() <= {"h0"}
        assert all(one in stored for one in found.get("h0", []))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE resources SET revision = revision + 1 WHERE id = 'port-1'",
        "UPDATE resources SET revision = revision + 1 WHERE hash IS NULL",
        "UPDATE resources SET id = 'other' WHERE id = 'port-1'",
        "DELETE FROM resources WHERE hash IS NULL",
        "UPDATE payloads SET payload = x'00'",
        "UPDATE streams SET topic = 'other'",
        "UPDATE streams SET position = x'00'",
        "UPDATE streams SET sequence = sequence + 1",
        "UPDATE streams SET host = 'h1'",
    ],
)
def test_a_stream_that_is_not_as_it_was_written_is_forgotten(tmp_path: Path, change: str) -> None:
    file = opened(tmp_path)
    update = Update("h0", STREAM, head(1, *HELD), True, [*HELD, *DEAD])
    file.write([update])
    file.close()
    connection = sqlite3.connect(file.path)
    connection.execute(change)
    connection.commit()
    connection.close()
    file = opened(tmp_path)
    assert file.load() == {}
    file.write([update])
    assert len(file.load()["h0"][0].resources) == len(HELD) + len(DEAD)
    file.close()


@pytest.mark.parametrize(("region", "hosts"), [("another", HOSTS), ("region", ["h0", "h2"])])
def test_a_file_of_another_region_or_other_hosts_is_set_aside(
    tmp_path: Path, region: str, hosts: list[str]
) -> None:
    file = opened(tmp_path)
    file.write([Update("h0", STREAM, head(1), True, HELD)])
    file.close()
    file = opened(tmp_path, region, hosts)
    assert file.load() == {}
    assert file.path.with_name(file.path.name + ASIDE).is_file()
    file.close()


def test_one_process_has_the_file_at_a_time(tmp_path: Path) -> None:
    file = opened(tmp_path)
    with pytest.raises(StartError, match="is another agent process using it"):
        opened(tmp_path)
    file.close()
    opened(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="give another --state-dir"):
        opened(tmp_path / "file")


# --- fleets ---


def feed(rig: FleetRig) -> tuple[Publisher, Publisher]:
    """Two hosts that follow a VPC at 1/2, one of them with a port."""
    rack, publisher = Publisher(INBOX), Publisher(STREAM)
    for host in HOSTS:
        rig.put(rack.publish(subscription(), host=host))
    rig.put(rack.publish(port(1), host="h0"))
    rig.put(publisher.publish(vpc(), subnet()))
    rig.put(publisher.publish(*(neighbor(n) for n in range(10))))
    return rack, publisher


async def all_at(rig: FleetRig, mark: tuple[int, int]) -> None:
    await wait_until(
        lambda: all(rig.told(host, "vpc/vpc-1") == mark for host in HOSTS), f"all at {mark}"
    )


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "DELAY_S", 0.0)
    monkeypatch.setattr(storing, "RETRY_S", 0.001)


def neighbors(plane: object) -> set[str]:
    assert isinstance(plane, MemoryDataPlane)
    return set(plane.tables[Kind.NEIGHBOR])


def test_a_fleet_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FleetRig()
        _, publisher = feed(rig)
        file = opened(tmp_path)
        async with rig.fleet(MEMBERS, state=file):
            await all_at(rig, (1, 2))
        file.close()
        rig.put(publisher.publish(neighbor(10)))
        later = FleetRig(rig.broker)
        file = opened(tmp_path)
        async with later.fleet(MEMBERS, state=file) as fleet:
            await all_at(later, (1, 3))
            assert sum(fleet.counters.messages.values()) == 2  # one for each host
            assert fleet.counters.resyncs == fleet.counters.gaps == 0
            for host in fleet.hosts.values():
                assert len(neighbors(host.data_plane)) == 11
            first = fleet.hosts["h0"].data_plane
            assert isinstance(first, MemoryDataPlane)
            assert set(first.tables[Kind.PORT]) == {"port-1"}
        file.close()

    asyncio.run(scenario())


def test_a_fleet_that_is_killed_between_two_batches_reads_what_came_since(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FleetRig()
        _, publisher = feed(rig)
        file = opened(tmp_path / "first")
        async with rig.fleet(MEMBERS, state=file) as fleet:
            await all_at(rig, (1, 2))
            await wait_until(lambda: not any(h.core.journal for h in fleet.hosts.values()), "taken")
            marks = [Mark(1, 2)] * 2
            await wait_until(
                lambda: (
                    [
                        one.head.mark
                        for stored in file.load().values()
                        for one in stored
                        if one.stream == STREAM
                    ]
                    == marks
                ),
                "it is stored",
            )
            # The disk as it is at this moment, the log of the database included.
            shutil.copytree(tmp_path / "first", tmp_path / "killed")
            rig.put(publisher.publish(neighbor(10), gone(neighbor(0))))
            await all_at(rig, (1, 3))
        file.close()
        later = FleetRig(rig.broker)
        file = opened(tmp_path / "killed")
        async with later.fleet(MEMBERS, state=file) as fleet:
            await all_at(later, (1, 3))
            assert sum(fleet.counters.messages.values()) == 2
            for host in fleet.hosts.values():
                assert neighbors(host.data_plane) == {f"port-{n}" for n in range(1, 11)}
        file.close()

    asyncio.run(scenario())


def test_a_fleet_whose_position_is_gone_reads_the_checkpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        rig = FleetRig()
        _, publisher = feed(rig)
        file = opened(tmp_path)
        async with rig.fleet(MEMBERS, state=file):
            await all_at(rig, (1, 2))
        file.close()
        rig.put(publisher.publish(gone(neighbor(0))))
        rig.put(publisher.publish(neighbor(10)))
        checkpoint(rig.broker, publisher)
        rig.broker.trim(TOPICS.of_stream(STREAM), 2)
        later = FleetRig(rig.broker)
        file = opened(tmp_path)
        async with later.fleet(MEMBERS, state=file) as fleet:
            await all_at(later, (1, 4))
            assert fleet.counters.resyncs == 2
            for host in fleet.hosts.values():
                assert neighbors(host.data_plane) == {f"port-{n}" for n in range(1, 11)}
        file.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk is full"), OverflowError("too large"), MemoryError()]
)
def test_a_batch_that_cannot_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def scenario() -> None:
        rig = FleetRig()
        feed(rig)
        file = opened(tmp_path)
        write, failures = file.write, [error] * 3

        def failing(updates: list[Update]) -> None:
            if failures:
                raise failures.pop()
            write(updates)

        monkeypatch.setattr(file, "write", failing)
        async with rig.fleet(MEMBERS, state=file):
            await all_at(rig, (1, 2))
            await wait_until(lambda: not failures, "it was tried again")
        assert {
            (host, one.stream, one.head.mark)
            for host, stored in file.load().items()
            for one in stored
        } == {
            (host, stream, mark)
            for host in HOSTS
            for stream, mark in ((STREAM, Mark(1, 2)), (INBOX, Mark(1, 3)))
        }
        file.close()

    asyncio.run(scenario())
