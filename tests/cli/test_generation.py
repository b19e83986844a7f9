"""`generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from goalstate.cli import generation
from goalstate.cli.intents import read
from goalstate.gs import intent_codec
from goalstate.scale.generate import Region
from tests.cli.conftest import Run
from tests.cli.servers import Publisher

SMALL = ("generate", "--hosts", "4", "--vpcs", "2x3,1x5", "--seed", "7")
INTENTS = [intent_codec.to_proto(i) for i in Region(4, (3, 3, 5), 7).intents()]


def test_the_region_goes_to_stdout_as_yaml_that_apply_takes(run: Run, publisher: Publisher) -> None:
    ran = run(*SMALL)
    assert ran.code == 0
    assert len(list(yaml.safe_load_all(ran.out))) == 4
    assert run("apply", "-", stdin=ran.out).code == 0
    assert publisher.applied == INTENTS


def test_a_file_and_a_directory_hold_the_same_intents(run: Run, tmp_path: Path) -> None:
    for form in ("yaml", "pb"):
        ran = run(*SMALL, "--format", form, "-o", tmp_path / form)
        assert ran.code == 0, ran
        assert [document.intent for document in read([str(tmp_path / form)])] == INTENTS
    assert run(*SMALL, "-o", tmp_path / "one.yaml").code == 0
    assert [document.intent for document in read([str(tmp_path / "one.yaml")])] == INTENTS


def test_a_serialized_file_is_one_intent_with_everything(run: Run, tmp_path: Path) -> None:
    assert run(*SMALL, "--format", "pb", "-o", tmp_path / "one.pb").code == 0
    (document,) = read([str(tmp_path / "one.pb")])
    assert (len(document.intent.hosts), len(document.intent.ports)) == (4, 11)


def test_the_summary_as_json_lists_the_files(run: Run, tmp_path: Path) -> None:
    assert run(*SMALL, "-o", tmp_path / "d", "--json").document == {
        "hosts": 4,
        "vpcs": 3,
        "ports": 11,
        "intents": 4,
        "files": [str(tmp_path / "d" / f"{number:06d}.yaml") for number in (1, 2, 3, 4)],
    }


def test_json_on_stdout_is_one_intent_on_a_line(run: Run) -> None:
    documents = run(*SMALL, "--json").documents
    assert [host["id"] for host in documents[0]["hosts"]] == [h.id for h in INTENTS[0].hosts]
    assert len(documents) == 4


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(run: Run) -> None:
    assert run(*SMALL).out == run(*SMALL).out
    assert run(*SMALL).out != run(*SMALL, "--seed", "8").out


def test_hosts_are_named_as_an_agent_process_names_them(run: Run) -> None:
    out = run(*SMALL, "--host-prefix", "c1-", "--group-size", "2").out
    assert "id: c1--000003" in out
    assert "group: c1--rack-00001" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--vpcs", "many"), "'many'"),
        (("--vpcs", "1x0"), "at least 1"),
        (("--vpcs", "1x99999999"), "does not fit"),
        (("--format", "xml"), "yaml or pb"),
    ],
)
def test_a_region_that_cannot_be_is_told(run: Run, arguments: tuple[str, str], told: str) -> None:
    ran = run("generate", *arguments)
    assert ran.code == 2
    assert told in ran.err


def test_a_directory_with_something_in_it_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    ran = run(*SMALL, "-o", tmp_path)
    assert ran.code == 2
    assert "not empty" in ran.err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_told(run: Run, tmp_path: Path) -> None:
    for target in (tmp_path / "none" / "x.yaml", Path("/dev/null/x")):
        ran = run(*SMALL, "-o", target)
        assert ran.code == 2
        assert str(target) in ran.err


def test_a_region_over_the_limit_of_one_intent_leaves_no_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MESSAGE_LIMIT", 1000)
    ran = run(*SMALL, "--format", "pb", "-o", tmp_path / "one.pb")
    assert ran.code == 2
    assert "give a directory" in ran.err
    assert list(tmp_path.iterdir()) == []
