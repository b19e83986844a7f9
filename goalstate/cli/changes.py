"""`apply` and `delete`: intents to the publisher, and its answers.

Laws: all input is read and understood before anything is sent, so a file that cannot be read
changes nothing. Each document is one change: accepted whole or refused whole, and what comes after
a refused one is still sent. Every violation is shown, with file, document and path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goalstate.cli import convergence
from goalstate.cli.errors import CommandError, ExitCode, InputError, Undecided
from goalstate.cli.intents import Document, read
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import Output
from goalstate.cli.plain import plain
from goalstate.cli.rpc import MESSAGE_LIMIT
from goalstate.gs import intent_codec
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import ApplyReply, WaitRequest

#: Bytes that a request has around its intent, at the most.
_AROUND = 1024


def apply(dpm: str, paths: Sequence[str], wanted: WaitRequest | None, out: Output) -> ExitCode:
    """Send what the files hold; `wanted` says how to wait for it, its target aside."""
    return send(dpm, read(paths), wanted, out)


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
    dpm: str, documents: Sequence[Document], wanted: WaitRequest | None, out: Output
) -> ExitCode:
    for document in documents:
        if document.intent.ByteSize() > MESSAGE_LIMIT - _AROUND:
            raise InputError(
                f"{document.name} has {document.intent.ByteSize()} bytes, and an intent may have "
                f"{MESSAGE_LIMIT - _AROUND}",
                "split it into several documents",
            )
    with connect(dpm) as client:
        replies = _send(client, documents, out)
        waited = _wait(client, replies, wanted, out) if wanted is not None else None
    refused = [
        (document, reply)
        for document, reply in zip(documents, replies, strict=True)
        if reply.violations
    ]
    accepted = [reply for reply in replies if not reply.violations]
    newest = max((reply.change for reply in accepted), default=0)
    changed = sum(reply.changed_objects for reply in accepted)
    out.result(
        {
            "accepted": len(accepted),
            "refused": len(refused),
            "change": newest,
            "changed_objects": changed,
            "streams": _heads(accepted),
            "refusals": [
                {
                    "source": document.source,
                    "document": document.number,
                    "violations": [plain(violation) for violation in reply.violations],
                }
                for document, reply in refused
            ],
            "wait": plain(waited) if waited is not None else None,
        }
    )
    for document, reply in refused:
        out.text(f"refused: {document.name}, {len(reply.violations)} violations", style="red")
        out.table(
            ("path", "reason", "message"),
            ((v.path, v.reason, v.message) for v in reply.violations),
        )
    if accepted:
        streams = len(_heads(accepted))
        out.text(
            f"accepted: {len(accepted)} intents up to change {newest}, {changed} objects changed, "
            f"published on {streams} streams"
            if changed
            else f"accepted: {len(accepted)} intents, nothing differs from what was there"
        )
    if waited is not None:
        convergence.describe(waited, out)
    if refused:
        return ExitCode.REFUSED
    return convergence.exit_code(waited) if waited is not None else ExitCode.OK


def _send(client: DataPlaneManager, documents: Sequence[Document], out: Output) -> list[ApplyReply]:
    replies: list[ApplyReply] = []
    try:
        with out.progress("intents answered", len(documents)) as bar:
            for reply in client.apply(document.intent for document in documents):
                replies.append(reply)
                bar.advance()
        if len(replies) != len(documents):
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
    return replies


def _wait(
    client: DataPlaneManager, replies: Sequence[ApplyReply], wanted: WaitRequest, out: Output
) -> Any:
    """One change is waited for by its number, several by everything published so far."""
    changed = [reply.change for reply in replies if reply.changed_objects]
    if len(changed) == 1 and len(replies) == 1:
        wanted.change = changed[0]
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
