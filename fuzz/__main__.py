"""Fuzzes one target, or all in turn, with coverage as the guide (atheris over libFuzzer).

    python -m fuzz [--target NAME …] [--seconds 60]

An input that crashes a target, takes longer than 10 s, or makes it take more than 2 GB is written
to the directory that `--findings` names, and the exit code is not 0. `python -m fuzz --input FILE
--target NAME` runs that one input again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.targets import TARGETS

#: Seconds that one input may take, and megabytes that the process may.
_INPUT_S = 10
_MEMORY_MB = 2048
_LONGEST = 64 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--input", type=Path, help="run this one input and end")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.input is not None:
        for name in options.target or TARGETS:
            TARGETS[name].run(options.input.read_bytes())
        return 0
    if options.inside:
        _fuzz(options.target[0], rest)
    failed = [
        name
        for name in options.target or TARGETS
        if _run(name, options.seconds, options.findings) != 0
    ]
    print(f"findings in {', '.join(failed)}" if failed else "no findings")
    return 1 if failed else 0


def _run(name: str, seconds: int, findings: Path) -> int:
    """One target in a process of its own: libFuzzer ends its process."""
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="goalstate-fuzz-") as directory:
        corpus = Path(directory)
        for number, sample in enumerate(TARGETS[name].samples()):
            (corpus / f"sample-{number}").write_bytes(sample)
        print(f"{name}: {seconds} s", flush=True)
        limits = [
            f"-max_total_time={seconds}",
            f"-timeout={_INPUT_S}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-max_len={_LONGEST}",
            f"-artifact_prefix={findings}/{name}-",
            str(corpus),
        ]
        command = [sys.executable, "-m", "fuzz", "--inside", "--target", name, *limits]
        return subprocess.run(command, timeout=seconds * 2 + 120, check=False).returncode


def _fuzz(name: str, arguments: list[str]) -> None:
    try:
        import atheris  # noqa: PLC0415 - only who fuzzes needs it
    except ImportError:
        raise SystemExit("atheris is not installed: `make fuzz` brings it") from None
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
