"""A page in a headless Chromium, if there is one: what it looks like when its scripts have run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed to look at pages with"
)
_CONSOLE = re.compile(r":CONSOLE[(:]\d+\)?\] (.*)")


class Seen(NamedTuple):
    #: The document, as it is after the scripts.
    dom: str
    #: What scripts, and the page's policy, complained of.
    console: list[str]

    def attribute(self, name: str) -> str | None:
        found = re.search(rf'<body[^>]* {name}="([^"]*)"', self.dom)
        return found[1] if found else None

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.dom))


def look(page: Path, *, width: int = 1280) -> Seen:
    """Open a page from its file. Raises subprocess.SubprocessError."""
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--user-data-dir={page.parent / 'profile'}", "--disable-dev-shm-usage"),
        *("--virtual-time-budget=10000", f"--window-size={width},900", "--dump-dom"),
        page.as_uri(),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Seen(ran.stdout, _CONSOLE.findall(ran.stderr))
