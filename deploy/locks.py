"""Writes requirements.lock and requirements-dev.lock from pyproject.toml, and checks them.

    python deploy/locks.py             writes them; versions that still fit are kept
    python deploy/locks.py --upgrade   writes them with the newest versions that fit
    python deploy/locks.py --check     without network: fails if they do not fit pyproject.toml

Laws: the lock files hold names, versions, hashes and markers, no address and no path of a machine.
They are for every platform and every Python that the project supports. requirements-dev.lock has
all of requirements.lock, in the same versions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"


class Lock(NamedTuple):
    """A lock file, with the dependency groups and the extras that it has on top of the project's
    dependencies."""

    file: Path
    groups: tuple[str, ...]
    extras: tuple[str, ...] = ()


RUN = Lock(ROOT / "requirements.lock", ("build",), ("load",))
DEVELOPMENT = Lock(ROOT / "requirements-dev.lock", ("build", "dev", "peers"), ("load",))


def write(lock: Lock, *, constraint: Path | None, upgrade: bool) -> None:
    """Resolve with uv. Raises SystemExit; uv has said why on standard error."""
    command = [
        str(Path(sysconfig.get_path("scripts")) / "uv"),
        *("pip", "compile", PROJECT.name, "--output-file", lock.file.name),
        *("--universal", "--python-version", "3.11", "--generate-hashes"),
        *("--no-emit-index-url", "--no-header", "--no-annotate", "--quiet"),
    ]
    for group in lock.groups:
        command += ["--group", group]
    for extra in lock.extras:
        command += ["--extra", extra]
    if constraint is not None:
        command += ["--constraint", constraint.name]
    if upgrade:
        command.append("--upgrade")
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise SystemExit(f"locks: uv could not resolve {lock.file.name}")


def pinned(file: Path) -> dict[str, str]:
    """Version by canonical name. Raises ValueError for a line that is no hashed pin."""
    result: dict[str, str] = {}
    text = file.read_text("utf-8").replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        pin, *hashes = line.split("--hash=sha256:")
        try:
            requirement = Requirement(pin)
        except InvalidRequirement as error:
            raise ValueError(f"{line!r} is no pinned requirement") from error
        version = str(requirement.specifier).removeprefix("==")
        if not hashes or not version or version == str(requirement.specifier):
            raise ValueError(f"{pin.strip()!r} is not pinned with a hash")
        result[canonicalize_name(requirement.name)] = version
    return result


def wanted(lock: Lock, project: dict[str, Any]) -> list[Requirement]:
    lines = list(project["project"]["dependencies"])
    for extra in lock.extras:
        lines += project["project"]["optional-dependencies"][extra]
    for group in lock.groups:
        lines += project["dependency-groups"][group]
    return [Requirement(line) for line in lines]


def faults(lock: Lock, project: dict[str, Any]) -> list[str]:
    """What is wrong with a lock file, one sentence each."""
    if not lock.file.is_file():
        return [f"{lock.file.name}: missing"]
    try:
        pins = pinned(lock.file)
    except ValueError as error:
        return [f"{lock.file.name}: {error}"]
    found = []
    for requirement in wanted(lock, project):
        version = pins.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{lock.file.name}: {requirement.name} of pyproject.toml is not in it")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{lock.file.name}: {requirement.name} {version} is not {requirement}")
    return found


def check() -> list[str]:
    project = tomllib.loads(PROJECT.read_text("utf-8"))
    found = faults(RUN, project) + faults(DEVELOPMENT, project)
    if found:
        return found
    run, development = pinned(RUN.file), pinned(DEVELOPMENT.file)
    return [
        f"{DEVELOPMENT.file.name}: {name} is {development.get(name, 'missing')}, but {version} in "
        f"{RUN.file.name}"
        for name, version in run.items()
        if development.get(name) != version
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if they misfit")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    arguments = parser.parse_args()
    if not arguments.check:
        write(RUN, constraint=None, upgrade=arguments.upgrade)
        write(DEVELOPMENT, constraint=RUN.file, upgrade=arguments.upgrade)
    found = check()
    for sentence in found:
        print(sentence, file=sys.stderr)
    if found:
        raise SystemExit("lock files do not fit pyproject.toml: run `make lock`")


if __name__ == "__main__":
    main()
