"""`convert`: a goal-state message from one format to the other, binary or JSON on either side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.files import read_bytes, write_bytes
from goalstate.cli.output import Output
from goalstate.gs.convert import address, hosts, to_v1, to_v2
from goalstate.gs.errors import GoalStateError
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalState, GoalStateV2
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2, decode

_LIMIT = 2**31 - 1
VERSIONS = {"v1": FORMAT_V1, "v2": FORMAT_V2}
_TYPES: dict[int, Any] = {FORMAT_V1: GoalState, FORMAT_V2: GoalStateV2}


def convert(path: str, to: str, host: str, target: Path | None, out: Output) -> ExitCode:
    if to not in VERSIONS:
        raise InputError(f"there is no format {to!r}", "use --to v1 or --to v2")
    if target is None and not out.as_json and sys.stdout.isatty():
        raise InputError("the message would go to the terminal", "give -o FILE, or --json")
    try:
        message = _read(path)
        converted = _converted(message, VERSIONS[to], host)
    except GoalStateError as error:
        raise InputError(f"{path}: {error}", "") from error
    if out.as_json:
        document = json_format.MessageToDict(converted, preserving_proto_field_name=True)
        if target is None:
            out.result(document)
        else:
            write_bytes(target, (json.dumps(document, ensure_ascii=False) + "\n").encode())
    else:
        serialized = converted.SerializeToString(deterministic=True)
        if target is None:
            sys.stdout.buffer.write(serialized)
            sys.stdout.buffer.flush()
        else:
            write_bytes(target, serialized)
    if target is not None:
        out.note(f"{path} ({type(message).__name__}) → {target} ({type(converted).__name__})")
    return ExitCode.OK


def _read(path: str) -> Any:
    """A message, binary or JSON. Raises InputError, MessageError."""
    content = read_bytes(path)
    if not content.lstrip().startswith(b"{"):
        return decode(content, limit=_LIMIT)
    try:
        document = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path} begins as JSON and is none: {error}", "") from None
    version = document.get("format_version", document.get("formatVersion"))
    if version not in _TYPES:
        raise InputError(
            f"{path}: format_version is {version!r}, and only 101 and 102 are known",
            "a goal state in JSON says which format it has",
        )
    try:
        return json_format.ParseDict(document, _TYPES[version]())
    except json_format.ParseError as error:
        name = _TYPES[version].DESCRIPTOR.name
        raise InputError(f"{path} is no {name} in JSON: {error}", "") from None


def _converted(message: Any, version: int, host: str) -> Any:
    """Raises InputError, ConversionError."""
    if message.format_version == version:
        return message
    if version == FORMAT_V2:
        of = host or message.host_id
        if not of:
            raise InputError("the message does not say which host it is for", "give --host ID")
        return to_v2({of: message})
    known = hosts(message)
    if not host and len(known) != 1:
        told = f"is for {len(known)} hosts ({', '.join(known[:10])})" if known else "is for no host"
        raise InputError(f"v1 is for one host, and the message {told}", "give --host ID")
    of = host or known[0]
    if known and of not in known:
        raise InputError(
            f"the message has nothing for host {of!r}", f"it is for {', '.join(known[:10])}"
        )
    return to_v1(address(message, of), of)
