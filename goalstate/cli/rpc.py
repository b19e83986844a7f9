"""gRPC calls of the command line: one place for addresses, limits, deadlines and errors.

Only connecting is retried, for a few seconds: a call that failed is never sent again, since an
intent may have been taken before the answer was lost.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from goalstate.cli.errors import CommandError, InputError, Refused, Undecided, Unreachable
from goalstate.process import DIRECTLY, RETRY_AFTER

#: The largest message either way, in bytes.
MESSAGE_LIMIT = 64 * 1024 * 1024
#: Seconds within which a server must be connected to.
CONNECT_S = 3.0
#: Seconds between two attempts.
_RETRY_S = 0.1
#: Seconds for a call that does not wait for anything.
CALL_S = 30.0

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    DIRECTLY,
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 100),
)


class Server:
    """What is said to a user of the server at the other end, where it is not as it should be."""

    def __init__(self, name: str, address: str, next_step: str) -> None:
        self.name = name
        self.address = address
        self.next_step = next_step
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or "/" in host:
            raise InputError(
                f"{address!r} is no address of a {name}", "write HOST:PORT, as 127.0.0.1:50151"
            )
        self._host_port = (host.strip("[]"), int(port))

    @contextmanager
    def connected(self) -> Iterator[grpc.Channel]:
        """A channel to where somebody answers. Raises Unreachable."""
        self._await_answer()
        with grpc.insecure_channel(self.address, options=_OPTIONS) as channel:
            yield channel

    def _await_answer(self) -> None:
        """gRPC itself could say this too, and would take 0.2 s for it."""
        end = time.monotonic() + CONNECT_S
        while True:
            try:
                socket.create_connection(self._host_port, timeout=CONNECT_S).close()
                return
            except OSError as error:
                if time.monotonic() > end or isinstance(error, socket.gaierror):
                    raise Unreachable(
                        f"no {self.name} answers at {self.address}", self.next_step
                    ) from None
                time.sleep(_RETRY_S)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turns what goes wrong in a call into an error of this program; `what` was called."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._explained(error, what) from error

    def _explained(self, error: Any, what: str) -> CommandError:
        code, said = error.code(), error.details() or "no reason given"
        where = f"the {self.name} at {self.address}"
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            found = violations(error)
            return Refused(f"{where} refused {what}: {said}", detail=found)
        if code is grpc.StatusCode.NOT_FOUND:
            return InputError(said, f"is {self.address} the {self.name} that you mean?")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _may_be_tried_again(error):
            return Unreachable(f"{where} cannot do {what} now: {said}", "try again a little later")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Refused(
                f"{what} is too large for {where}: {said}", "split it into several documents"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Undecided(
                f"{where} gave no answer to {what} in time",
                "try again; what it was asked to do may have been done",
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return InputError(
                f"what answers at {self.address} is no {self.name} of this version",
                "check the address and its port",
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return Unreachable(
                f"{where} cannot do {what} now: {said}",
                "try again when it and its broker are up; `goalstate status` says whether",
            )
        if code is grpc.StatusCode.CANCELLED:
            return Unreachable(f"{where} ended {what}: {said}", "is it shutting down?")
        return CommandError(f"{where} failed at {what}: {said} ({code.name})", "its log says more")


def _may_be_tried_again(error: Any) -> bool:
    """Does the answer say when? Then it is not for the size of what was asked."""
    return any(key == RETRY_AFTER for key, _ in error.trailing_metadata() or ())


def violations(error: Any) -> list[dict[str, str]]:
    """The violations in the BadRequest detail of a status, as {path, reason, message}."""
    try:
        status: Any = rpc_status.from_call(error)
    except ValueError:
        return []
    found = []
    for detail in status.details if status is not None else ():
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            for violation in bad.field_violations:
                reason, message = violation.reason, violation.description
                message = message.removeprefix(f"{reason}: ")
                found.append({"path": violation.field, "reason": reason, "message": message})
    return found
