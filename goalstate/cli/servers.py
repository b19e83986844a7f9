"""`broker start`, `dpm serve`, `agent run` and `demo`: the processes that stay.

Each builds the room's configuration and calls the room; what is here is what a user sees of it:
progress, addresses, and errors that say what to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from goalstate.bus.errors import BrokerFailed, BrokerNotFound, BrokerUnreachable, BusError
from goalstate.cli.errors import CommandError, ExitCode, InputError, Unreachable, no_broker
from goalstate.cli.output import Output
from goalstate.process import AddressError, StartError, ended_alike, write_ready_file

# Rooms are imported by the command that runs them: they are large.
# ruff: noqa: PLC0415

#: Seconds between two looks at a broker's process.
_LOOK_S = 0.5


def demo(broker: str, hosts: int, vpcs: str, seed: int, keep: bool, out: Output) -> ExitCode:
    from goalstate.cli.demo import demo as run

    with ended_alike(), explained(broker):
        return run(broker=broker, hosts=hosts, vpcs=vpcs, seed=seed, keep=keep, out=out)


def broker(
    kind: str,
    url: str | None,
    data_dir: Path | None,
    port: int,
    ready_file: Path | None,
    out: Output,
) -> ExitCode:
    """Find or start a broker, say what it is, and keep it until SIGTERM or Ctrl-C."""
    from goalstate.bus import brokers

    if kind not in get_args(brokers.Kind):
        raise InputError(
            f"there is no kind of broker {kind!r}",
            f"use one of {', '.join(get_args(brokers.Kind))}",
        )
    serving = False
    try:
        with (
            ended_alike(),
            explained(url or kind),
            brokers.find(
                kind,  # type: ignore[arg-type]
                url=url,
                data_dir=data_dir,
                port=port,
                progress=out.note,
            ) as found,
        ):
            facts = {
                "service": "broker",
                "kind": found.kind,
                "version": found.version,
                "url": found.url,
                "admin_url": found.admin_url,
                "data_dir": str(found.data_dir) if found.data_dir else None,
                "broker_pids": list(found.pids),
            }
            serving = True
            write_ready_file(ready_file, facts)
            out.result(facts)
            out.text(found.describe(), style="green")
            out.text(f"for clients: --broker {found.url}, or GOALSTATE_BROKER_URL={found.url}")
            if found.admin_url:
                out.text(f"admin REST API: {found.admin_url}")
            if found.pids:
                out.text(f"data in {found.data_dir}; Ctrl-C stops it")
                _await_end(found.pids)
                raise Unreachable(
                    f"the broker at {found.url} ended by itself",
                    f"its log is in {found.data_dir}",
                )
    except KeyboardInterrupt:
        out.note("stopped" if serving else "interrupted")
        return ExitCode.OK if serving else ExitCode.INTERRUPTED
    return ExitCode.OK


def _await_end(pids: Sequence[int]) -> None:
    """Until one of the processes is gone. Ctrl-C ends it earlier."""
    while True:
        for pid in pids:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
        time.sleep(_LOOK_S)


def dpm(file: Path | None, **flags: Any) -> ExitCode:
    from goalstate.dpm.__main__ import main
    from goalstate.dpm.config import DpmConfig
    from goalstate.dpm.errors import DpmError

    config = _configuration(DpmConfig, file, flags)
    with explained(config.broker):
        try:
            main(config)
        except DpmError as error:
            raise CommandError(f"the DPM cannot go on: {error}", "") from error
    return ExitCode.OK


def agent(file: Path | None, **flags: Any) -> ExitCode:
    from goalstate.agent.__main__ import main
    from goalstate.agent.config import AgentConfig

    config = _configuration(AgentConfig, file, flags)
    with explained(config.broker or "none"):
        main(config)
    return ExitCode.OK


def _configuration(model: Any, file: Path | None, flags: Mapping[str, Any]) -> Any:
    """A room's configuration. Raises InputError, which names every setting that is wrong."""
    import yaml
    from pydantic import ValidationError

    try:
        return model.load(file, **flags)
    except ValidationError as error:
        wrong = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"]]))
            for item in error.errors()
        ]
        missing = any(item["loc"] == ("broker",) for item in error.errors())
        raise InputError(
            f"the configuration is wrong: {'; '.join(wrong)}",
            "start a broker with `goalstate broker start`, and give its URL with --broker "
            "(GOALSTATE_BROKER_URL)"
            if missing
            else "see --help",
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"the configuration cannot be read: {error}", "") from None


@contextmanager
def explained(broker: str) -> Iterator[None]:
    try:
        yield
    except BrokerUnreachable as error:
        raise no_broker(broker, error) from error
    except AddressError as error:
        raise InputError(str(error), "") from error
    except (BrokerNotFound, BrokerFailed, StartError) as error:
        raise Unreachable(str(error), "") from error
    except BusError as error:
        raise InputError(f"the broker at {broker} cannot be used: {error}", "see --help") from error
