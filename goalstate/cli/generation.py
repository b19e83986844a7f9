"""`generate`: a made-up region as intents that `apply` takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf import json_format

from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.files import write_bytes, written
from goalstate.cli.output import Output, Progress
from goalstate.cli.rpc import MESSAGE_LIMIT
from goalstate.gs import intent_codec
from goalstate.gs.intent import ChannelChoice, Intent
from goalstate.scale.generate import PIECE, Region, parse_mix


def generate(
    hosts: int,
    vpcs: str,
    seed: int,
    target: Path | None,
    form: str,
    out: Output,
    *,
    host_prefix: str = "host",
    group_size: int = 40,
    channel: str = "auto",
) -> ExitCode:
    """Write the region to a file, a directory (a target without a suffix) or stdout."""
    if form not in _FORMS:
        raise InputError(f"there is no format {form!r}", "use --format yaml or pb")
    choices = {choice.name.lower(): choice for choice in ChannelChoice}
    if channel not in choices:
        raise InputError(f"there is no channel {channel!r}", f"use one of {', '.join(choices)}")
    try:
        region = Region(
            hosts,
            parse_mix(vpcs),
            seed,
            host_prefix=host_prefix,
            group_size=group_size,
            channel=choices[channel],
        )
    except ValueError as error:
        raise InputError(str(error), "give --vpcs as 5x1000,45x100: VPCs × ports each") from None
    pieces = -(-hosts // PIECE) + sum(-(-ports // PIECE) for ports in region.vpcs)
    with out.progress("intents written", pieces) as bar:
        if target is None:
            _to_stdout(region, form, out, bar)
            return ExitCode.OK
        files = (
            [_to_file(region, form, target, bar)]
            if target.suffix
            else list(_to_directory(region, form, target, bar))
        )
    out.result(
        {
            "hosts": hosts,
            "vpcs": len(region.vpcs),
            "ports": sum(region.vpcs),
            "intents": pieces,
            "files": [str(file) for file in files],
        }
    )
    out.text(
        f"{hosts} hosts, {len(region.vpcs)} VPCs, {sum(region.vpcs)} ports in {pieces} intents: "
        f"{target}"
    )
    out.note(f"apply it with `goalstate apply {target}`")
    return ExitCode.OK


def _yaml(intent: Intent) -> bytes:
    return b"---\n" + intent_codec.to_yaml(intent).encode()


def _serialized(intent: Intent) -> bytes:
    return intent_codec.to_proto(intent).SerializeToString(deterministic=True)


#: Either is something whose concatenation is again such a thing: documents one after the other, or
#: one Intent with the objects of all.
_FORMS: dict[str, Callable[[Intent], bytes]] = {"yaml": _yaml, "pb": _serialized}


def _to_stdout(region: Region, form: str, out: Output, bar: Progress) -> None:
    if out.as_json:
        for intent in region.intents():
            message = intent_codec.to_proto(intent)
            document: dict[str, Any] = json_format.MessageToDict(
                message, preserving_proto_field_name=True
            )
            out.result(document)
            bar.advance()
        return
    if form == "pb" and sys.stdout.isatty():
        raise InputError("protobuf would go to the terminal", "give -o FILE.pb or -o DIRECTORY")
    _concatenated(region, form, nullcontext(sys.stdout.buffer), bar)
    sys.stdout.buffer.flush()


def _to_file(region: Region, form: str, target: Path, bar: Progress) -> Path:
    _concatenated(region, form, written(target), bar)
    return target


def _concatenated(region: Region, form: str, opened: Any, bar: Progress) -> None:
    size = 0
    file: BinaryIO
    with opened as file:
        for intent in region.intents():
            content = _FORMS[form](intent)
            size += len(content)
            if form == "pb" and size > MESSAGE_LIMIT:
                raise InputError(
                    f"the region is more than one intent may be ({MESSAGE_LIMIT} bytes)",
                    "give a directory (-o NAME without a suffix), or --format yaml",
                )
            file.write(content)
            bar.advance()


def _to_directory(region: Region, form: str, target: Path, bar: Progress) -> Iterator[Path]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        taken = any(target.iterdir())
    except OSError as error:
        raise InputError(f"{target}: {error.strerror}", "give a directory to make") from None
    if taken:
        raise InputError(f"{target} is not empty", "give a directory that is, or a new one")
    for number, intent in enumerate(region.intents(), 1):
        file = target / f"{number:06d}.{form}"
        write_bytes(file, _FORMS[form](intent))
        yield file
        bar.advance()
