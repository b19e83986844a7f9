"""What a page has in it, read as a browser reads it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

#: Elements that have no end.
_VOID = frozenset(("meta", "input", "br", "hr", "img", "link"))
_FETCHES = frozenset(("src", "href", "srcset", "data", "poster", "action", "formaction"))


class Page(HTMLParser):
    """Fails where an element is not ended, or ended twice."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        #: What would be fetched, or gone to.
        self.addresses: list[str] = []
        #: Words that are shown.
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not ended: {self._open}"

    @property
    def plots(self) -> Any:
        return json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in _FETCHES:
                self.addresses.append(value or "")
            if name == "id" and value:
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.text += data
