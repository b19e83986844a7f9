"""Makes the project's virtual environment from a lock file: what `make` runs first.

    python3 deploy/environment.py requirements.lock        to run goalstate
    python3 deploy/environment.py requirements-dev.lock    to test it as well

Laws: what gets installed is what the lock file names, each with a hash that is checked; nothing is
resolved, and nothing else is fetched (the project itself is installed in place, with the build
backend of the lock file). A note in the environment says which lock files it has, so that the
second call does nothing; it is written last, so that a call that was cut short is made good by the
next. Two calls at once wait for each other. Only the standard library is used: nothing else is
there yet.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"
OLDEST = (3, 11)
#: The note, inside the environment: lock file name to what it was installed from.
NOTE = "goalstate-installed.json"


def fail(why: str, remedy: str) -> SystemExit:
    return SystemExit(f"environment: {why}\n{remedy}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other calls for the same environment waiting. Ends with the process, come what may."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("environment: waiting for another `make` that is installing", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def fingerprint(lock: Path) -> str:
    """Changes when the lock file, the package's metadata or its place in the file system do."""
    content = lock.read_bytes() + PROJECT.read_bytes() + os.fsencode(ROOT)
    return hashlib.sha256(content).hexdigest()


def noted(environment: Path) -> dict[str, str]:
    try:
        note = json.loads((environment / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in note.items()}


def works(environment: Path) -> bool:
    """Whether its interpreter starts, is new enough and has pip. It may link to one long gone."""
    check = f"import pip, sys; sys.exit(sys.version_info < {OLDEST})"
    command = [str(environment / "bin" / "python"), "-c", check]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def create(environment: Path) -> None:
    """Make the environment, over the remains of one that does not work. Raises SystemExit."""
    if sys.version_info < OLDEST:
        raise fail(
            f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed",
            "Install a newer one, or name it: make PYTHON=/path/to/python3.11 …",
        )
    version = sysconfig.get_python_version()
    print(f"environment: making {environment.name} with Python {version}", file=sys.stderr)
    # Not sys.executable: that may be the very one that is replaced.
    base = str(getattr(sys, "_base_executable", sys.executable))
    command = [base, "-m", "venv", "--clear", str(environment)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise fail(
            f"{base} could not make {environment}",
            f"On Debian and Ubuntu: apt-get install python{version}-venv. "
            "Or name another Python: make PYTHON=/path/to/python3.11 …",
        )


def install(environment: Path, lock: Path) -> None:
    """Install what the lock file names, and the project in place. Raises SystemExit."""
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-input"]
    count = lock.read_text("utf-8").count("==")
    print(f"environment: installing up to {count} packages of {lock.name}", file=sys.stderr)
    for arguments in (
        # The lock file is complete. Were pip to look at what its packages ask for, it would prefer
        # a newer release than the locked one for "name[extra]", and refuse that for want of a hash.
        ["--no-deps", "--require-hashes", "--requirement", str(lock)],
        ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    ):
        if subprocess.run([*pip, *arguments], check=False).returncode != 0:
            raise fail(
                f"pip could not install {arguments[-1]}; its reason is above",
                "Is the package index reachable, perhaps through a proxy? "
                "Then run the same command again: it goes on from here.",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lock", type=Path, help="what to install, with hashes")
    parser.add_argument("--into", type=Path, default=ROOT / ".venv", help="default: .venv")
    arguments = parser.parse_args()
    lock: Path = arguments.lock
    environment: Path = arguments.into.absolute()
    if not lock.is_file():
        raise fail(f"there is no {lock}", "`make lock` writes the lock files.")
    wanted = fingerprint(lock)
    if noted(environment).get(lock.name) == wanted and works(environment):
        return
    with alone(ROOT):
        installed = noted(environment)
        if not works(environment):
            installed = {}
            create(environment)
        elif installed.get(lock.name) == wanted:
            return
        start = time.monotonic()
        install(environment, lock)
        note = json.dumps(installed | {lock.name: wanted}, indent=1)
        (environment / NOTE).write_text(note + "\n", "utf-8")
        print(f"environment: ready after {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
