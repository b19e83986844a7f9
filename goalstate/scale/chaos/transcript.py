"""What happened in a run, and when: one JSON document on a line, written as it happens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Transcript:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = time.monotonic()
        self._file = path.open("w", encoding="utf-8")

    def write(self, event: str, **facts: Any) -> None:
        """`at_s` is since the transcript was begun."""
        at_s = round(time.monotonic() - self._begun, 3)
        line = json.dumps({"at_s": at_s, "event": event, **facts}, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
