"""`broker start`, `dpm serve`, `agent run` and `demo`: the processes that stay.

Each builds the room's configuration and calls the room; what is here is what a user sees of it:
progress, addresses, and errors that say what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goalstate.bus.errors import BrokerUnreachable, BusError
from goalstate.cli.errors import CommandError, ExitCode, InputError, Unreachable
from goalstate.process import StartError

# Rooms are imported by the command that runs them: they are large.
# ruff: noqa: PLC0415


def demo(broker: str, hosts: int, vpcs: str, seed: int, json_output: bool, keep: bool) -> int:
    from goalstate.scale.demo import main

    with _explained(broker):
        return main(
            broker=broker, hosts=hosts, vpcs=vpcs, seed=seed, json_output=json_output, keep=keep
        )


def dpm(file: Path | None, **flags: Any) -> ExitCode:
    from goalstate.dpm.__main__ import main
    from goalstate.dpm.config import DpmConfig
    from goalstate.dpm.errors import LogHeld

    config = _configuration(DpmConfig, file, flags)
    with _explained(config.broker):
        try:
            main(config)
        except LogHeld as error:
            raise Unreachable(
                f"another DPM serves region {config.region!r}: {error}",
                "stop it, or give another --region",
            ) from error
    return ExitCode.OK


def agent(file: Path | None, **flags: Any) -> ExitCode:
    from goalstate.agent.__main__ import main
    from goalstate.agent.config import AgentConfig

    config = _configuration(AgentConfig, file, flags)
    with _explained(config.broker):
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
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
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
def _explained(broker: str) -> Iterator[None]:
    try:
        yield
    except BrokerUnreachable as error:
        raise Unreachable(
            f"no broker answers at {broker}: {error}",
            "start one with `goalstate broker start`, or give --broker (GOALSTATE_BROKER_URL)",
        ) from error
    except StartError as error:
        raise Unreachable(str(error), "") from error
    except BusError as error:
        raise CommandError(f"the broker at {broker}: {error}", "its log says more") from error
