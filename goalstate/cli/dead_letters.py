"""`dead-letters`: what data planes refused for good, read off the broker, and made to come again.

Laws: of each host, kind and id the newest letter counts. Whether it is still outstanding is not in
the letter: the DPM knows it from the hosts' reports, and where it does not (the host is silent, it
sums its exceptions up, or the DPM does not answer) that is said. What is replayed is a change like
any other, with a number that can be waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from goalstate.bus import admin
from goalstate.bus.base import EARLIEST
from goalstate.bus.connect import connect as connect_bus
from goalstate.bus.errors import BrokerUnreachable, BusError
from goalstate.cli import convergence
from goalstate.cli.errors import CommandError, ExitCode, InputError, no_broker
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import Output
from goalstate.cli.plain import plain
from goalstate.gs.errors import MalformedMessage
from goalstate.gs.packing import unpack
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import DeadLetter, DeadLetters
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import StatusReply, WaitRequest
from goalstate.gs.pb.goalstate.northbound.v1.intent_pb2 import ResourceName
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamId, StreamKind
from goalstate.gs.topics import Topics

#: Exceptions that the DPM is asked for.
_EXCEPTIONS = 200_000


class Outstanding(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Source(NamedTuple):
    """Where the letters are: the broker, its admin API if it is known, and the region's topics."""

    broker: str | None
    admin_url: str
    topics: Topics


class Selection(NamedTuple):
    """Which letters are meant; what is empty leaves all in."""

    vpc: str = ""
    host: str = ""
    kind: str = ""
    id: str = ""

    def __bool__(self) -> bool:
        return any(self[:])

    def takes(self, letter: DeadLetter) -> bool:
        return (
            self.vpc in ("", vpc_of(letter))
            and self.host in ("", letter.host)
            and self.kind.lower().replace("-", "_") in ("", _kind(letter))
            and self.id in ("", letter.id)
        )


class _Found(NamedTuple):
    letter: DeadLetter
    outstanding: Outstanding


def list_(
    source: Source, dpm: str, selection: Selection, only_outstanding: bool, out: Output
) -> ExitCode:
    letters = _selected(source, selection)
    try:
        with connect(dpm) as client:
            reported = _reported(client)
    except CommandError as error:
        reported = Reported(None)
        out.note(f"whether they are outstanding is not known: {error.message}")
    found = [_Found(letter, reported.outstanding(letter)) for letter in letters]
    if only_outstanding:
        found = [one for one in found if one.outstanding is not Outstanding.NO]
    out.result({"letters": [_document(one) for one in found]})
    _table(found, out)
    return ExitCode.OK


def replay(
    source: Source,
    dpm: str,
    selection: Selection,
    everything: bool,
    wanted: WaitRequest | None,
    out: Output,
) -> ExitCode:
    """Have what is outstanding of them published again; `wanted` says how to wait for it."""
    if bool(selection) == everything:
        raise InputError(
            "several selections" if everything else "nothing selected",
            "give --all, or some of --vpc, --host, --kind and --id",
        )
    letters = _selected(source, selection)
    with connect(dpm) as client:
        reported = _reported(client)
        chosen = [one for one in letters if reported.outstanding(one) is not Outstanding.NO]
        names = {(one.type, one.id, _whose(one)) for one in chosen}
        reply = waited = None
        if names:
            reply = client.republish(
                [ResourceName(type=type_, id=id_, host=host) for type_, id_, host in sorted(names)]
            )
            if wanted is not None:
                convergence.of_reply(wanted, reply)
                waited = convergence.waited(client, wanted, out)
    out.result(
        {
            "letters": len(chosen),
            "resources": len(names),
            "change": reply.change if reply is not None else 0,
            "wait": plain(waited) if waited is not None else None,
        }
    )
    if reply is None:
        out.text("none of them is outstanding: nothing was published again")
        return ExitCode.OK
    out.text(
        f"{len(names)} resources of {len(chosen)} letters are published again as change "
        f"{reply.change}"
    )
    if waited is None:
        return ExitCode.OK
    convergence.describe(waited, out)
    return convergence.exit_code(waited)


class Reported:
    """What hosts report as not applied, as the DPM has it; without its status nothing is known."""

    def __init__(self, status: StatusReply | None) -> None:
        listed = status.exception_list if status is not None else ()
        self._names = {(one.host, one.type, one.id) for one in listed if one.id}
        #: Hosts of which all is known: they live, and nothing of theirs is left out.
        self._known: set[str] = set()
        if status is not None and sum(one.count for one in listed) >= sum(
            status.exceptions.values()
        ):
            live = {one.host for one in status.host_list if one.lease == "live"}
            self._known = live - {one.host for one in listed if one.count > 1}

    def outstanding(self, letter: DeadLetter) -> Outstanding:
        """Does its host still report what the letter says?"""
        if (letter.host, letter.type, letter.id) in self._names:
            return Outstanding.YES
        return Outstanding.NO if letter.host in self._known else Outstanding.UNKNOWN


def vpc_of(letter: DeadLetter) -> str:
    """The VPC that a refused resource belongs to; empty if that cannot be told."""
    try:
        stream = StreamId.parse(letter.stream)
    except ValueError:
        return ""
    if stream.kind is StreamKind.VPC:
        return stream.id
    try:
        for _, config in unpack(letter.resource):
            return str(getattr(config, "vpc_id", ""))
    except MalformedMessage:
        pass
    return ""


def _reported(client: DataPlaneManager) -> Reported:
    return Reported(client.status(hosts=True, exceptions=_EXCEPTIONS))


def _selected(source: Source, selection: Selection) -> list[DeadLetter]:
    """The newest letter of each host, kind and id, of those that are meant. Raises InputError."""
    if not source.broker:
        raise InputError(
            "dead letters are on the broker", "give --broker URL (GOALSTATE_BROKER_URL)"
        )
    newest: dict[tuple[str, int, str], DeadLetter] = {}
    for letter in asyncio.run(_read(source.broker, _topics(source))):
        key = (letter.host, letter.type, letter.id)
        known = newest.get(key)
        if known is None or known.refused_unix_ns <= letter.refused_unix_ns:
            newest[key] = letter
    return [letter for _, letter in sorted(newest.items()) if selection.takes(letter)]


def _topics(source: Source) -> Sequence[str]:
    """Those that there are. Without Pulsar's admin API nobody can tell: to read one makes it."""
    topics = source.topics
    names = [topics.dead_letters(shard) for shard in range(topics.report_shards)]
    parts = topics.prefix.removeprefix("persistent://").split("/")
    if not source.admin_url:
        return names
    try:
        known = set(admin.topics(source.admin_url, *parts))
    except BusError as error:
        raise InputError(
            f"which topics there are cannot be found out: {error}",
            "correct --admin-url (GOALSTATE_BROKER_ADMIN_URL), or go without",
        ) from error
    return [name for name in names if name in known]


async def _read(broker: str, topics: Iterable[str]) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    try:
        bus = await connect_bus(broker)
    except BrokerUnreachable as error:
        raise no_broker(broker, error) from error
    except BusError as error:
        raise InputError(str(error), "give --broker pulsar://HOST:PORT") from error
    try:
        for topic in topics:
            async for message in bus.read_to_end(topic, EARLIEST):
                letters += DeadLetters.FromString(message.payload).letters
    except (BusError, DecodeError) as error:
        raise InputError(
            f"{topic} cannot be read: {error}", "is --region the one of the agents?"
        ) from error
    finally:
        await bus.close()
    return letters


def _whose(letter: DeadLetter) -> str:
    return letter.host if int(letter.type) == Kind.SUBSCRIPTION else ""


def _kind(letter: DeadLetter) -> str:
    try:
        return Kind(letter.type).name.lower()
    except ValueError:
        return str(letter.type)


def _document(found: _Found) -> dict[str, Any]:
    letter = plain(found.letter)
    letter["type"] = _kind(found.letter)
    return letter | {"vpc": vpc_of(found.letter), "outstanding": found.outstanding.value}


def _table(found: Sequence[_Found], out: Output) -> None:
    if not found:
        out.text("no dead letters")
        return
    out.table(
        ("refused", "outstanding", "host", "vpc", "resource", "revision#", "attempts#", "reason"),
        (
            (
                datetime.fromtimestamp(letter.refused_unix_ns // 10**9, UTC).isoformat(),
                state.value,
                letter.host,
                vpc_of(letter) or "-",
                f"{_kind(letter)}/{letter.id}",
                letter.revision,
                letter.attempts,
                letter.reason,
            )
            for letter, state in found
        ),
    )
