"""Intents in files: YAML with one or more documents, JSON, or a serialized Intent.

Law: a file is understood whole before any of it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from goalstate.cli.errors import InputError
from goalstate.cli.files import read_bytes
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentSyntaxError
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

#: What a directory is searched for, and in the order of their names.
_SUFFIXES = frozenset({".yaml", ".yml", ".json", ".pb"})
# No text has these; the lengths and tags of a serialized Intent are mostly among them.
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SHAPE = "`goalstate generate --hosts 1 --vpcs 1x1` shows what one looks like"


class Document(NamedTuple):
    """One intent, and where it came from; documents of a source are counted from 1."""

    source: str
    number: int
    intent: intent_pb2.Intent
    #: Which part of it this is, where the region is divided and it was taken apart.
    part: str = ""

    @property
    def name(self) -> str:
        return f"{self.source}, document {self.number}" + (f" ({self.part})" if self.part else "")


def read(paths: Iterable[str]) -> list[Document]:
    """All intents in files, directories and standard input (`-`). Raises InputError."""
    return [document for path in paths for file in _files(path) for document in _read(file)]


def _files(path: str) -> Iterator[str]:
    if path == "-" or not Path(path).is_dir():
        yield path
        return
    found = sorted(file for file in Path(path).iterdir() if file.suffix in _SUFFIXES)
    if not found:
        raise InputError(
            f"{path}: no file in this directory ends in {', '.join(sorted(_SUFFIXES))}",
            "give a file, or a directory of intents",
        )
    yield from map(str, found)


def _read(path: str) -> list[Document]:
    source = "standard input" if path == "-" else path
    content = read_bytes(path)
    if path.endswith(".pb") or _BINARY.search(content):
        return [Document(source, 1, _serialized(content, source))]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{source}:{line}: this is not UTF-8", "save it as UTF-8") from None
    try:
        messages = intent_codec.load_messages(text, source)
    except IntentSyntaxError as error:
        raise _no_intent(error) from None
    return [Document(source, number, message) for number, message in enumerate(messages, 1)]


def _no_intent(error: IntentSyntaxError) -> InputError:
    if not error.others:
        return InputError(str(error), _SHAPE)
    found = [error, *error.others]
    detail = [
        {"at": f"{one.source}:{one.line}:", "path": one.path, "message": one.reason}
        for one in found
    ]
    return InputError(f"{error.source}: there are {len(found)} errors", _SHAPE, detail=detail)


def _serialized(content: bytes, source: str) -> intent_pb2.Intent:
    try:
        intent = intent_pb2.Intent.FromString(content)
    except DecodeError:
        raise InputError(f"{source} is neither text nor a serialized Intent", _SHAPE) from None
    if len(UnknownFieldSet(intent)):
        raise InputError(f"{source} is a serialized message, and not an Intent", _SHAPE)
    if not content:
        raise InputError(f"{source}: there is no intent in it, it is empty", _SHAPE)
    return intent
