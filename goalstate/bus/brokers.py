"""Finds a broker, or starts one: what `find` gives is ready to be used and knows how to stop.

In this order: the URL that is given, or is in the environment; Apache Pulsar as a local process;
Apache Pulsar in Docker; the embedded broker. Whoever asks for one kind gets that kind or an error.

A broker that `find` starts listens on 127.0.0.1 at free ports and ends with the process that
started it, however that ends, unless it is asked to stay. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from goalstate.bus import admin, apache
from goalstate.bus.errors import BrokerFailed, BrokerNotFound, BrokerUnreachable, BusError
from goalstate.bus.process import Child, Progress, free_ports

Kind = Literal["auto", "apache", "docker", "embedded"]

URL_VARIABLE = "GOALSTATE_BROKER_URL"
ADMIN_VARIABLE = "GOALSTATE_BROKER_ADMIN_URL"
_IMAGE = f"apachepulsar/pulsar:{apache.VERSION}"


@dataclass
class Broker:
    """A broker that answers. As a context manager it is stopped at the end."""

    kind: Literal["url", "apache", "docker", "embedded"]
    version: str
    url: str
    #: Base URL of the admin REST API, "" if there is none.
    admin_url: str
    #: Where it keeps its data, None if that is not ours to know.
    data_dir: Path | None = None
    _child: Child | None = field(default=None, repr=False)
    _launch: Callable[[], Child] | None = field(default=None, repr=False)
    _temporary: bool = field(default=False, repr=False)

    @property
    def pids(self) -> tuple[int, ...]:
        """The broker's own process, if we started it."""
        return (self._child.pid,) if self._child else ()

    @property
    def ended(self) -> bool:
        """Did we start it, and is it gone?"""
        return self._child is not None and not self._child.alive

    def describe(self) -> str:
        """What it is, in plain words."""
        what = {
            "url": f"a broker that was there already (version {self.version})",
            "apache": f"Apache Pulsar {self.version} as a local process",
            "docker": f"Apache Pulsar {self.version} in Docker",
            "embedded": "the embedded broker (one small process that keeps logs on disk; "
            "for demos and tests of up to a few hundred hosts, not for production)",
        }[self.kind]
        return f"{what} at {self.url}"

    def stop(self) -> None:
        """End the broker, if we started it. Twice is harmless."""
        if self._child:
            self._child.stop()
        if self._temporary and self.data_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def kill(self) -> None:
        """End it as a power cut would; its data stays. Raises BusError if it is not ours."""
        if not self._child:
            raise BusError(f"{self.url} was not started here")
        self._child.kill()

    def restart(self) -> None:
        """Start it again after `kill`, at the same ports and with the same data.

        Raises BrokerFailed, or BusError if it is not ours.
        """
        if not self._launch:
            raise BusError(f"{self.url} was not started here")
        self._child = self._launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def find(
    kind: Kind = "auto",
    *,
    url: str | None = None,
    admin_url: str | None = None,
    data_dir: Path | None = None,
    port: int = 0,
    keep: bool = False,
    progress: Progress = lambda text: None,
    env: Mapping[str, str] = os.environ,
) -> Broker:
    """Find or start a broker.

    `url` (or, for kind "auto", GOALSTATE_BROKER_URL) names one that runs; then nothing is
    started. `data_dir` is kept; without it the data is temporary and goes with the broker (or, if
    the broker is to `keep` on running after us, stays). `port` is the broker's (0: a free one).

    Raises BrokerNotFound with what was tried, BrokerUnreachable, BrokerFailed; BusError if both a
    URL and a kind other than "auto" are asked for.
    """
    if url and kind != "auto":
        raise BusError(
            f"asked for a broker of kind {kind!r}, which would be started, and for the one at "
            f"{url}, which runs: give one of the two"
        )
    given = url or (env.get(URL_VARIABLE) if kind == "auto" else None)
    if given:
        return _given(given, admin_url or env.get(ADMIN_VARIABLE, ""))
    starts: dict[str, Callable[[], Broker]] = {
        "apache": lambda: _start_apache(data_dir, port, keep, progress, env),
        "docker": lambda: _start_docker(data_dir, port, keep, progress, env),
        "embedded": lambda: _start_embedded(data_dir, port, keep, progress),
    }
    if kind != "auto":
        return starts[kind]()
    tried = []
    for name, start in starts.items():
        try:
            return start()
        except (BrokerNotFound, BrokerFailed) as error:
            tried.append(f"{name}: {error}")
            progress(f"no {name} broker: {str(error).splitlines()[0]}")
    raise BrokerNotFound("no broker could be had:\n" + "\n".join(tried))


def _given(url: str, admin_url: str) -> Broker:
    """A broker that somebody else runs. Raises BrokerUnreachable unless it answers."""
    parts = urlsplit(url)
    if parts.scheme not in ("pulsar", "pulsar+ssl", "embedded") or not parts.netloc:
        raise BrokerUnreachable(f"{url} is no broker's URL: pulsar://host:port was expected")
    last: Exception | None = None
    for address in parts.netloc.split(","):
        try:
            one = urlsplit(f"//{address}")
            socket.create_connection((one.hostname or "", one.port or 6650), timeout=5).close()
        except (OSError, ValueError) as error:
            last = error
        else:
            break
    else:
        raise BrokerUnreachable(
            f"nobody answers at {url} ({last}); start a broker there, or correct the URL "
            f"(argument or {URL_VARIABLE})"
        )
    version = "unknown"
    if admin_url:
        with contextlib.suppress(BusError):
            version = admin.version(admin_url)
    return Broker("url", version, url, admin_url)


def _place(data_dir: Path | None, keep: bool) -> tuple[Path, bool]:
    """The data directory, and whether it goes with the broker."""
    if data_dir is None:
        return Path(tempfile.mkdtemp(prefix="goalstate-broker-")), not keep
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerFailed(f"the data directory {data_dir} cannot be used: {error}") from error
    return data_dir.resolve(), False


def _start(broker: Broker, launch: Callable[[], Child]) -> Broker:
    broker._launch = launch
    try:
        broker._child = launch()
    except BaseException:
        broker.stop()
        raise
    return broker


def _check_port(port: int) -> None:
    """Raises BrokerFailed if the asked port is taken."""
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise BrokerFailed(f"port {port} cannot be used: {error.strerror}") from error


def _start_apache(
    data_dir: Path | None, port: int, keep: bool, progress: Progress, env: Mapping[str, str]
) -> Broker:
    _check_port(port)
    installation = apache.find_installation(progress, env=env)
    free = free_ports(2)
    ports = (port or free[0], free[1])
    place, temporary = _place(data_dir, keep)
    broker = Broker(
        "apache",
        installation.version,
        f"pulsar://127.0.0.1:{ports[0]}",
        f"http://127.0.0.1:{ports[1]}",
        place,
        _temporary=temporary,
    )
    progress(f"starting Apache Pulsar {installation.version}")
    doomed = place if temporary else None

    def launch() -> Child:
        return apache.start(installation, place, ports, progress, keep=keep, doomed=doomed)

    return _start(broker, launch)


def _start_docker(
    data_dir: Path | None, port: int, keep: bool, progress: Progress, env: Mapping[str, str]
) -> Broker:
    _check_port(port)
    docker = shutil.which("docker", path=env.get("PATH", ""))
    if not docker:
        raise BrokerNotFound("no docker command on PATH")
    if not _answers([docker, "info"], env):
        raise BrokerNotFound("no Docker engine answers `docker info`; start one")
    free = free_ports(2)
    ports = (port or free[0], free[1])
    place, temporary = _place(data_dir, keep)
    admin_url = f"http://127.0.0.1:{ports[1]}"
    settings = {
        **apache.SETTINGS,
        "brokerServicePort": str(ports[0]),
        "webServicePort": str(ports[1]),
        "advertisedAddress": "127.0.0.1",
    }
    command = [docker, "run", "--rm", "--init", "--name", f"goalstate-broker-{ports[0]}"]
    for one in ports:
        command += ["--publish", f"127.0.0.1:{one}:{one}"]
    for name, value in settings.items():
        command += ["--env", f"PULSAR_PREFIX_{name}={value}"]
    if data_dir is not None:
        # The container's user is not ours.
        place.chmod(0o777)
        command += ["--volume", f"{place}:/pulsar/data"]
    command += [
        _IMAGE,
        "bash",
        "-c",
        "bin/apply-config-from-env.py conf/standalone.conf && "
        "exec bin/pulsar standalone --no-functions-worker --no-stream-storage",
    ]

    def launch() -> Child:
        child = Child(
            command,
            what=f"{_IMAGE} in Docker",
            log=place / "broker.log",
            env={**os.environ, **env},
            keep=keep,
            doomed=place if temporary else None,
        )
        child.await_ready(lambda: admin.healthy(admin_url), progress)
        return child

    broker = Broker(
        "docker",
        apache.VERSION,
        f"pulsar://127.0.0.1:{ports[0]}",
        admin_url,
        place,
        _temporary=temporary,
    )
    progress(f"starting {_IMAGE} in Docker")
    return _start(broker, launch)


def _answers(command: list[str], env: Mapping[str, str]) -> bool:
    try:
        done = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, timeout=15, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _start_embedded(data_dir: Path | None, port: int, keep: bool, progress: Progress) -> Broker:
    _check_port(port)
    port = port or free_ports(1)[0]
    place, temporary = _place(data_dir, keep)
    root = Path(__file__).parents[2]
    search = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))

    def launch() -> Child:
        child = Child(
            [
                sys.executable,
                "-m",
                "goalstate.bus.embedded",
                f"--port={port}",
                f"--data-dir={place / 'topics'}",
            ],
            what="the embedded broker",
            log=place / "broker.log",
            env={**os.environ, "PYTHONPATH": search},
            keep=keep,
            doomed=place if temporary else None,
        )
        child.await_ready(lambda: _listens(port), progress)
        return child

    broker = Broker("embedded", "", f"embedded://127.0.0.1:{port}", "", place, _temporary=temporary)
    progress("starting the embedded broker")
    return _start(broker, launch)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
