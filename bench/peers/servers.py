"""Servers of others, as Debian packages them: fetched into our cache and run from there.

Nothing is installed: apt downloads a package, and what it needs and the machine has not, with lists
of its own; it is unpacked beside the cached Pulsar. Where that cannot be done, the server on PATH
is taken.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench.system import MeasurementFailed, Progress
from goalstate.bus.apache import cache_dir

#: Seconds for apt to fetch lists, or a package and what it needs.
_FETCH_S = 300.0
#: Erlang's own start script names the folder that it was installed to.
_ERLANG = "usr/lib/erlang"


class Program(NamedTuple):
    """A server's executable, and how a child of ours finds what belongs to it."""

    path: Path
    env: Mapping[str, str]
    #: The folder that its package was unpacked to; `/` if it is an installed one.
    root: Path


def find(package: str, program: str, progress: Progress) -> Program:
    """The program of a Debian package; `program` is its path in it, or below `/`.

    Raises MeasurementFailed, which says what each of the ways lacked.
    """
    root = cache_dir() / "peers" / package
    missing = ""
    if not (root / program).is_file():
        try:
            _fetch(package, root, progress)
        except (OSError, MeasurementFailed) as error:
            missing = str(error)
    if (root / program).is_file():
        return Program(root / program, _env(root), root)
    installed = Path("/") / program
    if not installed.is_file():
        raise MeasurementFailed(f"no {package}: not installed, and {missing or 'not in it'}")
    return Program(installed, dict(os.environ), Path("/"))


def _env(root: Path) -> dict[str, str]:
    """Of a child that finds programs and libraries of the unpacked packages first."""
    binaries = [root / "usr/sbin", root / "usr/bin", root / _ERLANG / "bin"]
    libraries = [*root.glob("usr/lib/*-linux-gnu*"), *root.glob("lib/*-linux-gnu*")]
    given = dict(os.environ)
    given["PATH"] = os.pathsep.join([*map(str, binaries), given.get("PATH", "")])
    found = [*map(str, libraries), given.get("LD_LIBRARY_PATH", "")]
    given["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, found))
    return given


def _fetch(package: str, root: Path, progress: Progress) -> None:
    """Download and unpack, whole or not at all. Raises MeasurementFailed, OSError."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise MeasurementFailed(f"there is no {tool} here to fetch it with")
    progress(f"fetching {package} from Debian's packages (once)")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root.parent) as scratch:
        fetched, unpacked = Path(scratch, "debs"), Path(scratch, "root")
        for folder in (fetched, unpacked, Path(scratch, "lists/partial")):
            folder.mkdir(parents=True)
        options = ["-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
        options += ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
        _run(["apt-get", *options, "-q", "update"], fetched)
        install = ["-q", "-s", "--no-install-recommends", "install", package]
        names = needed(_run(["apt-get", *options, *install], fetched))
        # One that is installed is not named; its files may be elsewhere than where we look.
        _run(["apt-get", *options, "-q", "download", *sorted({*names, package})], fetched)
        for archive in sorted(fetched.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(unpacked)], fetched)
        _relocate(unpacked, root)
        shutil.rmtree(root, ignore_errors=True)
        unpacked.rename(root)


def needed(simulated: str) -> list[str]:
    """The packages that `apt-get -s install` would install."""
    return re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)


def _relocate(unpacked: Path, root: Path) -> None:
    script = unpacked / _ERLANG / "bin/erl"
    if script.is_file():
        text = script.read_text("utf-8")
        script.write_text(text.replace(f"=/{_ERLANG}", f"={root / _ERLANG}"), "utf-8")


def _run(command: list[str], folder: Path) -> str:
    """Raises MeasurementFailed with the end of what it said."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(f"{command[0]} took more than {_FETCH_S:g} s") from error
    if done.returncode:
        last = (done.stdout.strip().splitlines() or [""])[-1]
        raise MeasurementFailed(f"`{command[0]} {command[-1]}` failed: {last}")
    return done.stdout


def said(program: Program, *arguments: str) -> str:
    """The first line that it prints, as when it is asked for its version."""
    done = subprocess.run(
        [program.path, *arguments],
        env=dict(program.env),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ((done.stdout or done.stderr).strip().splitlines() or ["of unknown version"])[0]


def listens(port: int) -> bool:
    """Does somebody on this port of 127.0.0.1?"""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
