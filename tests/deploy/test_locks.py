"""The lock files fit pyproject.toml, and `make lint` would say so if they did not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deploy import locks

HASH = "--hash=sha256:" + "0" * 64
PROJECT: dict[str, Any] = {
    "project": {
        "dependencies": ["one>=2,<3", "Two_Parts>=1; sys_platform != 'win32'"],
        "optional-dependencies": {"more": ["three>=3"]},
    },
    "dependency-groups": {"build": []},
}


def lock(folder: Path, *lines: str) -> locks.Lock:
    file = folder / "some.lock"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return locks.Lock(file, ("build",))


def test_the_lock_files_of_the_project_fit_it() -> None:
    assert locks.check() == []


@pytest.mark.parametrize("each", [locks.RUN, locks.DEVELOPMENT], ids=lambda each: each.file.name)
def test_a_lock_file_names_no_address_and_no_place_on_a_machine(each: locks.Lock) -> None:
    text = each.file.read_text("utf-8")
    assert re.findall(r"https?:|file:|@|/|index|find-links", text) == []


def test_pins_in_range_are_accepted_however_a_name_is_spelled(tmp_path: Path) -> None:
    good = lock(tmp_path, f"one==2.5 \\\n    {HASH} \\\n    {HASH}", f"two-parts==1.0 {HASH}")
    assert locks.faults(good, PROJECT) == []


def test_a_missing_lock_file_is_named(tmp_path: Path) -> None:
    assert locks.faults(locks.Lock(tmp_path / "no.lock", ()), PROJECT) == ["no.lock: missing"]


def test_a_dependency_that_is_not_locked_is_named(tmp_path: Path) -> None:
    (fault,) = locks.faults(lock(tmp_path, f"one==2.5 {HASH}"), PROJECT)
    assert fault == "some.lock: Two_Parts of pyproject.toml is not in it"


def test_what_an_extra_needs_must_be_locked_where_the_lock_file_has_it(tmp_path: Path) -> None:
    good = lock(tmp_path, f"one==2.5 {HASH}", f"two-parts==1.0 {HASH}")
    assert locks.faults(good._replace(extras=("more",)), PROJECT) == [
        "some.lock: three of pyproject.toml is not in it"
    ]


def test_a_pin_outside_the_wanted_range_is_named(tmp_path: Path) -> None:
    (fault,) = locks.faults(lock(tmp_path, f"one==3.0 {HASH}", f"two-parts==1.0 {HASH}"), PROJECT)
    assert fault.startswith("some.lock: one 3.0 is not one")


@pytest.mark.parametrize("line", ["one==2.5", f"one>=2.5 {HASH}", f"one {HASH}", "one @ x ==="])
def test_a_line_that_pins_nothing_is_named(tmp_path: Path, line: str) -> None:
    (fault,) = locks.faults(lock(tmp_path, line), PROJECT)
    assert fault.startswith("some.lock: '")
