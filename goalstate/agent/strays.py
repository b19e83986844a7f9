"""What a data plane holds that nobody wants, until it is deleted. Pure.

A stray is of no stream, so it is deleted by programs of its own: when nothing else is to be done,
and only if it is still of no concern then. Until that is done it is an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from goalstate.agent.actions import Refusal
from goalstate.agent.news import News
from goalstate.agent.stream import Fault
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN

#: Why something is not in the data plane as it should be.
DRIFT = "DRIFT: the data plane does not hold what was applied"


class Strays:
    """Of one host."""

    def __init__(self, concerns: Callable[[Kind, str], bool], news: News, limit: int) -> None:
        """`concerns`: is a resource wanted, or on its way? `limit`: operations in one program."""
        self._concerns = concerns
        self._news = news
        self._limit = limit
        #: All there are, and why they are still there.
        self.exceptions: dict[tuple[Kind, str], Fault] = {}
        self._due: list[tuple[Kind, str]] = []
        self._flying: list[tuple[Kind, str]] = []

    @property
    def flying(self) -> bool:
        """Is a program of them under way?"""
        return bool(self._flying)

    def found(self, kind: Kind, ids: Iterable[str]) -> int:
        """These are all of a kind that the data plane held lately; gives how many still count."""
        odd = {id_ for id_ in ids if not self._concerns(kind, id_)}
        for known, id_ in list(self.exceptions):
            if known is kind and id_ not in odd:
                self._forget(kind, id_)
        for id_ in odd:
            if (kind, id_) not in self.exceptions:
                self._keep(kind, id_, Fault(True, f"{DRIFT}; it is deleted", 0, ORIGIN))
        self._due += sorted((kind, id_) for id_ in odd - {i for k, i in self._due if k is kind})
        return len(odd)

    @property
    def due(self) -> bool:
        """Is any to be deleted?"""
        return bool(self._due)

    def next_program(self) -> list[Resource]:
        """The deletions to do now."""
        due, self._due = self._due[: self._limit], self._due[self._limit :]
        for kind, id_ in due:
            if self._concerns(kind, id_):
                self._forget(kind, id_)
            else:
                self._flying.append((kind, id_))
        return [Resource(kind, id_, 0, b"") for kind, id_ in self._flying]

    def programmed(self, refused: Mapping[int, Refusal]) -> None:
        """The program under way is done, but for what was refused."""
        flying, self._flying = self._flying, []
        for place, (kind, id_) in enumerate(flying):
            refusal = refused.get(place)
            if refusal is None:
                self._forget(kind, id_)
            else:
                reason = f"{DRIFT}; to delete it was refused: {refusal.reason}"
                self._keep(kind, id_, Fault(False, reason, 0, ORIGIN))

    def _keep(self, kind: Kind, id_: str, fault: Fault) -> None:
        self._news.exceptions |= self.exceptions.get((kind, id_)) != fault
        self.exceptions[kind, id_] = fault

    def _forget(self, kind: Kind, id_: str) -> None:
        self._news.exceptions |= self.exceptions.pop((kind, id_), None) is not None
