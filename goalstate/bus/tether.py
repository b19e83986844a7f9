"""Runs a command that must not outlive the process that asked for it.

    python tether.py PID_FILE DOOMED_DIR COMMAND…

Standard input is a pipe whose other end the asking process holds, and nobody else. Whatever ends
that process (a normal exit, Ctrl-C, kill -9) closes the pipe; then the command gets SIGTERM and,
if it is still there after a bound, SIGKILL, and DOOMED_DIR (may be empty) is removed.
The command in turn is killed by the kernel, where it can (Linux), if this process is.

Why a process: a parent-death signal alone is bound to the *thread* that forked, and a parent that
was killed cannot clean up. This file imports nothing of the project, so it runs by its path.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

#: Seconds between SIGTERM and SIGKILL.
GRACE = 15.0
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child, between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    pid_file, doomed, *command = arguments
    # No thread runs yet, so a function between fork and exec is safe here.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )
    with open(f"{pid_file}.part", "w", encoding="ascii") as file:
        file.write(str(child.pid))
    os.replace(f"{pid_file}.part", pid_file)
    ended = threading.Event()
    orphaned = threading.Event()

    def await_parent() -> None:
        while os.read(0, 4096):
            pass
        orphaned.set()
        ended.set()

    def await_child() -> None:
        child.wait()
        ended.set()

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: ended.set())
    for wait in (await_parent, await_child):
        threading.Thread(target=wait, daemon=True).start()
    ended.wait()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if doomed and orphaned.is_set():
        shutil.rmtree(doomed, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Not sys.exit: the thread that still reads standard input would hold up the interpreter.
    os._exit(code)
