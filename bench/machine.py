"""The machine that was measured on, and what the kernel says of processes. Linux only."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from bench.samples import written

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLIENTS = ("pulsar-client", "protobuf", "grpcio")


def facts() -> dict[str, str]:
    """What a reader must know to compare the numbers with others."""
    cores = len(os.sched_getaffinity(0))
    models = _values(Path("/proc/cpuinfo"), "model name")
    memory = int(next(_values(Path("/proc/meminfo"), "MemTotal")).split()[0]) / 2**20
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return {
        "machine": f"{cores} cores, {memory:.0f} GiB, {next(models, platform.machine())}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _CLIENTS),
        "load before (1, 5, 15 min)": load,
    }


def _values(file: Path, name: str) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used, in user and in kernel mode, to the microsecond."""
    # The id of its clock, as clock_getcpuclockid(3) makes it; /proc has hundredths of a second.
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process (None: of this one)."""
    statm = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="utf-8")
    return int(statm.split()[1]) * _PAGE


def peak_bytes(pid: int) -> int:
    """The most memory that was ever resident in a process."""
    status = Path(f"/proc/{pid}/status")
    return int(next(_values(status, "VmHWM")).split()[0]) * 1024


def command(arguments: Sequence[str]) -> str:
    """How the program was called."""
    return f"`{' '.join(['python -m bench', *arguments])}`"


def mib(size: float) -> str:
    return f"{written(size / 2**20)} MiB"


def kib(size: float) -> str:
    return written(size / 2**10)


def descendants(pid: int) -> list[int]:
    """A process that runs, and all that it and those have started; [] if it does not run."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended meanwhile
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    left = [pid] if Path(f"/proc/{pid}").exists() else []
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def loopback_bytes() -> int:
    """All that processes of this machine ever said to one another by the loopback interface."""
    received = next(_values(Path("/proc/net/dev"), "lo"))
    return int(received.split()[0])
