"""`apply` and `delete`: intents to the publisher, and its answers.

Laws: all input is read and understood before anything is sent, so a file that cannot be read
changes nothing. Each document is one change: accepted whole or refused whole. The first refusal
ends it, unless asked to go on: what comes after a document often builds on it, and would flood the
terminal. Violations are told with file, document and path, the first ones to people, all in JSON.
Where the region is divided, a document over several of its shards is taken apart, which is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from goalstate.cli import convergence
from goalstate.cli.errors import CommandError, ExitCode, InputError, Undecided
from goalstate.cli.intents import Document, read
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import SHOWN, Output
from goalstate.cli.plain import plain
from goalstate.cli.rpc import MESSAGE_LIMIT
from goalstate.gs import intent_codec, sharding
from goalstate.gs.intent import FIELDS, Deletion, Intent, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import (
    ApplyReply,
    WaitReply,
    WaitRequest,
)

#: Bytes that a request has around its intent, at the most.
_AROUND = 1024


_KINDS = {field: kind for kind, field in FIELDS.items()}
#: What to do about a reason of a refusal, by its word.
_HINTS = {
    "IN_USE": "what is in use can be deleted with all that refers to it: `goalstate delete KIND ID "
    "--cascade`, or `cascade: true` beside the id in `deletes`",
}


def apply(
    dpm: str,
    paths: Sequence[str],
    wanted: WaitRequest | None,
    out: Output,
    *,
    keep_going: bool = False,
) -> ExitCode:
    """Send what the files hold; `wanted` says how to wait for it, its target aside."""
    return send(dpm, read(paths), wanted, out, keep_going=keep_going)


def delete(
    dpm: str, kind: str, id_: str, cascade: bool, wanted: WaitRequest | None, out: Output
) -> ExitCode:
    """Delete one object."""
    kinds = {known.name.lower().replace("_", "-"): known for known in ObjectKind}
    known = kinds.get(kind.lower().replace("_", "-"))
    if known is None:
        raise InputError(
            f"there are no objects of kind {kind!r}", f"the kinds are {', '.join(kinds)}"
        )
    intent = intent_codec.to_proto(Intent(deletes=[Deletion(known, id_, cascade)]))
    return send(dpm, [Document(f"delete {kind} {id_}", 1, intent)], wanted, out)


def send(
    dpm: str,
    documents: Sequence[Document],
    wanted: WaitRequest | None,
    out: Output,
    *,
    keep_going: bool = False,
) -> ExitCode:
    for document in documents:
        if document.intent.ByteSize() > MESSAGE_LIMIT - _AROUND:
            raise InputError(
                f"{document.name} has {document.intent.ByteSize()} bytes, and an intent may have "
                f"{MESSAGE_LIMIT - _AROUND}",
                "split it into several documents",
            )
    with connect(dpm) as client:
        # What is of one VPC is of one shard, however many there are.
        if any(sharding.is_wide(document.intent) for document in documents):
            shards = client.shards()
            if shards > 1:
                documents = _taken_apart(client, documents, shards, out)
        replies = _send(client, documents, out, keep_going)
        waited = _wait(client, replies, wanted, out) if wanted is not None else None
    answered = _Answered(documents, replies, waited)
    out.result(answered.as_json())
    answered.describe(out)
    if answered.refused:
        return ExitCode.REFUSED
    return convergence.exit_code(waited) if waited is not None else ExitCode.OK


def _taken_apart(
    client: DataPlaneManager, documents: Sequence[Document], shards: int, out: Output
) -> list[Document]:
    """The documents, each over several shards as its parts."""
    given: dict[tuple[ObjectKind, str], str | None] = {}

    def find(kind: ObjectKind, id_: str) -> str | None:
        if (kind, id_) not in given:
            given[kind, id_] = client.vpc_of(kind, id_)
        return given[kind, id_]

    parts = []
    for document in documents:
        found = sharding.split(document.intent, shards, find)
        if len(found) < 2:
            parts.append(document)
        else:
            out.note(
                f"{document.name} is over several shards of the region: it becomes {len(found)} "
                "changes, each accepted or refused by itself"
            )
            for place, part in found:
                name = "hosts" if place == sharding.HOSTS else f"shard {place}"
                parts.append(document._replace(intent=part, part=name))
        # What a later document deletes may be what this one gives.
        for one in sharding.placed(document.intent, shards, find):
            if one.vpc_id and one.field != "deletes":
                object_ = getattr(document.intent, one.field)[one.at]
                given[_KINDS[one.field], object_.id] = one.vpc_id
    return parts


class _Answered:
    """What came of the documents; those after the last answer were not sent."""

    def __init__(
        self, documents: Sequence[Document], replies: Sequence[ApplyReply], waited: WaitReply | None
    ) -> None:
        self.refused = [(d, r) for d, r in zip(documents, replies, strict=False) if r.violations]
        self._accepted = [reply for reply in replies if not reply.violations]
        self._not_sent = len(documents) - len(replies)
        self._waited = waited
        self._newest = max((reply.change for reply in self._accepted), default=0)
        self._changed = sum(reply.changed_objects for reply in self._accepted)
        self._heads = _heads(self._accepted)
        self._of_shards = [c.shard for reply in self._accepted for c in reply.shard_changes]

    def as_json(self) -> dict[str, Any]:
        return {
            "accepted": len(self._accepted),
            "refused": len(self.refused),
            "not_sent": self._not_sent,
            "change": self._newest,
            "changed_objects": self._changed,
            "streams": self._heads,
            "refusals": [
                {
                    "source": document.source,
                    "document": document.number,
                    "violations": [plain(violation) for violation in reply.violations],
                }
                for document, reply in self.refused
            ],
            "wait": plain(self._waited) if self._waited is not None else None,
        }

    def describe(self, out: Output) -> None:
        for document, reply in self.refused:
            count = len(reply.violations)
            out.text(f"refused: {document.name}, {count} violations", style="red")
            out.table(
                ("path", "reason", "message"),
                ((v.path, v.reason, v.message) for v in reply.violations[:SHOWN]),
            )
            if count > SHOWN:
                out.text(f"… and {count - SHOWN} more (--json has all)")
        reasons = {v.reason for _, reply in self.refused for v in reply.violations}
        for reason in sorted(reasons & _HINTS.keys()):
            out.text(_HINTS[reason])
        if self._not_sent:
            out.text(
                f"{self._not_sent} documents after the refused one were not sent "
                "(--keep-going sends them)"
            )
        if self._accepted and self._changed:
            out.text(
                f"accepted: {len(self._accepted)} intents {self._as_changes()}, "
                f"{self._changed} objects changed, published on {len(self._heads)} streams"
            )
        elif self._accepted:
            out.text(
                f"accepted: {len(self._accepted)} intents, nothing differs from what was there"
            )
        if self._waited is not None:
            convergence.describe(self._waited, out)

    def _as_changes(self) -> str:
        if not self._of_shards:
            return f"up to change {self._newest}"
        return f"as {len(self._of_shards)} changes of {len(set(self._of_shards))} shards"


def _send(
    client: DataPlaneManager, documents: Sequence[Document], out: Output, keep_going: bool
) -> list[ApplyReply]:
    """The answers so far as there are any; the last one may be a refusal that ended it."""
    replies: list[ApplyReply] = []
    #: After each answer: is another document to be sent?
    further: SimpleQueue[bool] = SimpleQueue()

    def intents() -> Iterator[intent_pb2.Intent]:
        for document in documents:
            yield document.intent
            # Called from a thread of gRPC. Without looking at answers, sending need not wait.
            if not keep_going and not further.get():
                return

    try:
        with out.progress("intents answered", len(documents)) as bar:
            for reply in client.apply(intents()):
                replies.append(reply)
                further.put(not reply.violations)
                bar.advance()
        refused = not keep_going and bool(replies) and bool(replies[-1].violations)
        if len(replies) != len(documents) and not refused:
            raise Undecided("the DPM ended the stream early", "apply the rest again")
    except CommandError as error:
        if len(documents) > 1:
            change = max((reply.change for reply in replies), default=0)
            error.message += (
                f"; {len(replies)} of {len(documents)} intents were answered before"
                f" (change {change}), the next one was {documents[len(replies)].name}"
                if len(replies) < len(documents)
                else ""
            )
        raise
    finally:
        further.put(False)
    return replies


def _wait(
    client: DataPlaneManager, replies: Sequence[ApplyReply], wanted: WaitRequest, out: Output
) -> Any:
    """One change is waited for by its number, several by everything published so far."""
    if len(replies) == 1 and replies[0].changed_objects:
        convergence.of_reply(wanted, replies[0])
    elif any(not reply.violations for reply in replies):
        wanted.all = True
    else:
        return None
    return convergence.waited(client, wanted, out)


def _heads(replies: Sequence[ApplyReply]) -> dict[str, str]:
    """Stream → the newest mark that the intents were published under."""
    heads: dict[str, tuple[int, int]] = {}
    for reply in replies:
        for at in reply.streams:
            heads[at.stream] = max(heads.get(at.stream, (0, 0)), (at.epoch, at.sequence))
    return {stream: f"{epoch}/{sequence}" for stream, (epoch, sequence) in sorted(heads.items())}
