"""Finding, fetching, starting and ending brokers; with stand-ins for Maven, Java and Docker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from goalstate.bus import apache, brokers
from goalstate.bus.connect import connect
from goalstate.bus.errors import BrokerFailed, BrokerNotFound, BrokerUnreachable, BusError
from goalstate.bus.process import Child, free_ports

JAVA_21 = "echo 'openjdk version \"21.0.8\" 2025-07-15' >&2"
JAVA_11 = "echo 'openjdk version \"11.0.2\" 2019-01-15' >&2"
BROKEN_BROKER = "echo 'the disk is on fire'; exit 3"


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def distribution(root: Path, broker: str = BROKEN_BROKER) -> Path:
    """The few files of a distribution that are looked at."""
    script(root / "bin" / "pulsar", broker)
    (root / "conf").mkdir()
    (root / "conf" / "standalone.conf").write_text("webServicePort=8080\nlast=1")
    (root / "lib").mkdir()
    (root / "lib" / "org.apache.pulsar-pulsar-broker-4.0.8.jar").touch()
    return root


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A machine with nothing on it."""
    for name in ("path", "home"):
        (tmp_path / name).mkdir()
    return {
        "PATH": str(tmp_path / "path"),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def wait_for(what: str, condition: Callable[[], bool], bound: float = 30) -> None:
    end = time.monotonic() + bound
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        os.sched_yield()


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def quiet(_: str) -> None:
    pass


# -- a given URL -----------------------------------------------------------------------------


def test_a_given_url_is_used_and_nothing_is_started(
    env: dict[str, str], embedded_broker: brokers.Broker
) -> None:
    for found in (
        brokers.find("auto", url=embedded_broker.url, env=env),
        brokers.find("auto", env={**env, brokers.URL_VARIABLE: embedded_broker.url}),
    ):
        assert (found.kind, found.url, found.pids) == ("url", embedded_broker.url, ())
        assert embedded_broker.url in found.describe()
        found.stop()
        with pytest.raises(BusError, match="not started here"):
            found.kill()
    brokers.find(url=embedded_broker.url, env=env)


def test_who_asks_for_a_kind_gets_that_kind_whatever_the_environment_says(
    env: dict[str, str], embedded_broker: brokers.Broker
) -> None:
    env[brokers.URL_VARIABLE] = embedded_broker.url
    with brokers.find("embedded", env=env) as broker:
        assert broker.kind == "embedded"
        assert broker.url != embedded_broker.url
    with pytest.raises(BrokerNotFound, match="no docker command"):
        brokers.find("docker", env=env)


def test_a_url_and_a_kind_together_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(BusError, match=r"'apache'.*pulsar://127\.0\.0\.1:1.*one of the two"):
        brokers.find("apache", url="pulsar://127.0.0.1:1", env=env)


def test_a_command_that_ends_at_its_start_is_called_by_its_name(tmp_path: Path) -> None:
    for command, told in ((["/does/not/exist"], "could not be"), (["/bin/false"], "ended at its")):
        with pytest.raises(BrokerFailed, match=f"^the fleet {told}"):
            Child(
                command, what="the fleet", log=tmp_path / "fleet.log", env=os.environ
            ).await_ready(lambda: False, quiet)


def test_a_given_url_where_nobody_answers_is_an_error_that_says_what_to_do(
    env: dict[str, str],
) -> None:
    with pytest.raises(BrokerUnreachable, match=brokers.URL_VARIABLE):
        brokers.find(url=f"pulsar://127.0.0.1:{free_ports(1)[0]}", env=env)
    for wrong in ("http://127.0.0.1:80", "localhost:6650", "pulsar://"):
        with pytest.raises(BrokerUnreachable, match=r"no broker's URL"):
            brokers.find(url=wrong, env=env)
    with pytest.raises(BrokerUnreachable, match="nobody answers"):
        brokers.find(url="pulsar://127.0.0.1:notaport", env=env)


@pytest.mark.parametrize("url", ["pulsar://127.0.0.1:x", "embedded://127.0.0.1:x", "embedded://"])
def test_connecting_to_a_malformed_url_is_an_error(url: str) -> None:
    with pytest.raises(BusError, match=r"127|embedded"):
        asyncio.run(connect(url))


# -- what is there, and what is fetched ------------------------------------------------------


def test_auto_on_an_empty_machine_ends_with_the_embedded_broker(env: dict[str, str]) -> None:
    told: list[str] = []
    script(Path(env["PATH"]) / "java", JAVA_21)
    with brokers.find("auto", env=env, progress=told.append) as broker:
        assert broker.kind == "embedded"
        assert "not for production" in broker.describe()
        (pid,) = broker.pids
        data_dir = broker.data_dir
    assert is_gone(pid)
    assert data_dir and not data_dir.exists()
    assert [text.split(":")[0] for text in told if text.startswith("no ")] == [
        "no apache broker",
        "no docker broker",
    ]


def test_one_kind_is_not_replaced_by_another(env: dict[str, str]) -> None:
    with pytest.raises(BrokerNotFound, match=r"PULSAR_HOME.*Maven"):
        brokers.find("apache", env=env)
    with pytest.raises(BrokerNotFound, match="no docker command"):
        brokers.find("docker", env=env)
    script(Path(env["PATH"]) / "docker", "exit 1")
    with pytest.raises(BrokerNotFound, match="no Docker engine answers"):
        brokers.find("docker", env=env)


def test_pulsar_home_is_used_or_named_as_wrong(env: dict[str, str], tmp_path: Path) -> None:
    java = script(Path(env["PATH"]) / "java", JAVA_21)
    home = distribution(tmp_path / "given")
    found = apache.find_installation(quiet, env={**env, "PULSAR_HOME": str(home)})
    assert (found.home, found.version) == (home, "4.0.8")
    assert found.java_home == java.parent.parent
    with pytest.raises(BrokerNotFound, match=r"PULSAR_HOME=.*no bin/pulsar"):
        apache.find_installation(quiet, env={**env, "PULSAR_HOME": str(tmp_path)})


def test_maven_fetches_once_and_the_cache_is_used_afterwards(
    env: dict[str, str], tmp_path: Path
) -> None:
    script(Path(env["PATH"]) / "java", JAVA_21)
    source = distribution(tmp_path / "apache-pulsar-4.0.8")
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(source, source.name)
    tarball = Path(env["HOME"]) / ".m2" / "repository" / apache._TARBALL
    mvn = script(
        Path(env["PATH"]) / "mvn",
        f"echo run >> {tmp_path}/runs; PATH=/usr/bin:/bin\n"
        f"mkdir -p {tarball.parent} && cp {packed} {tarball}",
    )
    told: list[str] = []
    first = apache.find_installation(told.append, env=env)
    assert first.home == apache.cache_dir(env) / "apache-pulsar-4.0.8"
    assert ["fetching" in text for text in told] == [True, False]
    mvn.unlink()
    tarball.unlink()
    assert apache.find_installation(quiet, env=env) == first
    assert (tmp_path / "runs").read_text() == "run\n"
    assert {path.name for path in apache.cache_dir(env).iterdir()} == {first.home.name, ".lock"}


def test_a_failing_maven_and_a_broken_tarball_leave_nothing_behind(
    env: dict[str, str], tmp_path: Path
) -> None:
    script(Path(env["PATH"]) / "java", JAVA_21)
    script(Path(env["PATH"]) / "mvn", "echo 'no route to repository'; exit 1")
    with pytest.raises(BrokerNotFound, match="no route to repository"):
        apache.find_installation(quiet, env=env)
    tarball = Path(env["HOME"]) / ".m2" / "repository" / apache._TARBALL
    tarball.parent.mkdir(parents=True)
    tarball.write_bytes(b"half a download")
    with pytest.raises(BrokerNotFound, match="cannot be unpacked"):
        apache.find_installation(quiet, env=env)
    assert [path.name for path in apache.cache_dir(env).iterdir()] == [".lock"]


def test_a_java_that_is_too_old_is_not_used(env: dict[str, str], tmp_path: Path) -> None:
    home = {"PULSAR_HOME": str(distribution(tmp_path / "given"))}
    script(Path(env["PATH"]) / "java", JAVA_11)
    with pytest.raises(BrokerNotFound, match="Java 17"):
        apache.find_installation(quiet, env={**env, **home}, fetch=False)
    newer = script(tmp_path / "jdk" / "bin" / "java", JAVA_21)
    found = apache.find_installation(
        quiet, env={**env, **home, "JAVA_HOME": str(tmp_path / "jdk")}, fetch=False
    )
    assert found.java_home == newer.parent.parent


def test_settings_replace_lines_and_are_added_after_a_last_line_without_end() -> None:
    text = "# a=0\na=1\nb=2\nc = 3"
    assert apache.with_settings(text, {"a": "9", "c": "8", "d": "7"}) == (
        "# a=0\na=9\nb=2\nc=8\nd=7\n"
    )


# -- starting and ending ---------------------------------------------------------------------


def test_a_broker_that_dies_at_its_start_is_an_error_with_its_last_words(
    env: dict[str, str], tmp_path: Path
) -> None:
    script(Path(env["PATH"]) / "java", JAVA_21)
    home = distribution(tmp_path / "given")
    with pytest.raises(BrokerFailed, match="the disk is on fire"):
        brokers.find("apache", env={**env, "PULSAR_HOME": str(home)}, data_dir=tmp_path / "data")
    configuration = (tmp_path / "data" / "standalone.conf").read_text().splitlines()
    assert "managedLedgerNewEntriesCheckDelayInMillis=0" in configuration
    assert "bindAddress=127.0.0.1" in configuration
    assert "webServicePort=8080" not in configuration


REGISTERING_BROKER = """\
import http.server, pathlib, re, sys
data = pathlib.Path(sys.argv[1])
starts = data / "starts"
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
if len(starts.read_text()) <= {sick}:
    print("Successfully re-acquired lock at /ledgers/available/a\\n" * 100, flush=True)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")
port = re.search(r"webServicePort=([0-9]+)", (data / "standalone.conf").read_text())[1]
http.server.HTTPServer(("127.0.0.1", int(port)), Healthy).serve_forever()
"""


@pytest.mark.parametrize("sick", [1, 9])
def test_a_broker_whose_storage_registers_for_ever_is_started_anew_with_its_data(
    sick: int, env: dict[str, str], tmp_path: Path
) -> None:
    program, data = tmp_path / "broker.py", tmp_path / "data"
    program.write_text(REGISTERING_BROKER.format(sick=sick))
    script(Path(env["PATH"]) / "java", JAVA_21)
    home = distribution(tmp_path / "given", f"exec {sys.executable} {program} {data}")
    installation = apache.find_installation(quiet, env={**env, "PULSAR_HOME": str(home)})
    told: list[str] = []
    web, binary = free_ports(2)

    def start() -> Child:
        return apache.start(installation, data, (binary, web), told.append, doomed=data)

    if sick == 1:
        child = start()
        assert child.alive
        assert (data / "starts").read_text() == "xx"
        child.stop()
    else:
        with pytest.raises(
            BrokerFailed, match=r"again and again, after 4 starts; see .*broker\.log"
        ):
            start()
    assert any("starting anew" in text for text in told)


def test_docker_gets_loopback_ports_and_our_settings(env: dict[str, str], tmp_path: Path) -> None:
    script(
        Path(env["PATH"]) / "docker",
        '[ "$1" = info ] && exit 0\n'
        f'echo "$@" > {tmp_path}/arguments; echo "no space left"; exit 1',
    )
    with pytest.raises(BrokerFailed, match="no space left"):
        brokers.find("docker", env=env)
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.count("--publish 127.0.0.1:") == arguments.count("--publish") == 2
    assert "PULSAR_PREFIX_managedLedgerNewEntriesCheckDelayInMillis=0" in arguments
    assert "PULSAR_PREFIX_advertisedAddress=127.0.0.1" in arguments
    assert "apachepulsar/pulsar:4.0.8" in arguments


def test_a_busy_port_is_named(embedded_broker: brokers.Broker, tmp_path: Path) -> None:
    port = int(embedded_broker.url.rsplit(":", 1)[1])
    with pytest.raises(BrokerFailed, match=f"port {port}"):
        brokers.find("embedded", port=port, env={})
    (tmp_path / "file").touch()
    with pytest.raises(BrokerFailed, match="data directory"):
        brokers.find("embedded", data_dir=tmp_path / "file", env={})


def test_a_given_data_directory_is_kept_and_used_again(tmp_path: Path) -> None:
    async def send(url: str) -> None:
        bus = await connect(url)
        await (await bus.open_producer("t")).send(b"kept")
        await bus.close()

    async def last(url: str) -> bytes | None:
        bus = await connect(url)
        message = await bus.last("t")
        await bus.close()
        return message and message.payload

    with brokers.find("embedded", data_dir=tmp_path / "data", env={}) as broker:
        asyncio.run(send(broker.url))
    with brokers.find("embedded", data_dir=tmp_path / "data", env={}) as broker:
        assert asyncio.run(last(broker.url)) == b"kept"


PARENT = """
import sys
from goalstate.bus import brokers
broker = brokers.find("embedded", env={}, keep=sys.argv[1] == "keep")
print(*broker.pids, broker.url, broker.data_dir, flush=True)
sys.stdin.read()
"""


def start_parent(how: str) -> tuple[subprocess.Popen[str], int, str, Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(brokers.__file__).parents[2])},
    )
    assert parent.stdout
    pid, url, data_dir = parent.stdout.readline().split()
    return parent, int(pid), url, Path(data_dir)


@pytest.mark.parametrize("end", ["exit", "interrupt", "kill"])
def test_a_broker_ends_with_its_parent_however_that_ends(end: str) -> None:
    parent, pid, _, data_dir = start_parent("tied")
    if end == "exit":
        parent.communicate("")
    else:
        parent.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
        parent.communicate()
    wait_for("the broker ends", lambda: is_gone(pid))
    wait_for("its data goes", lambda: not data_dir.exists())


def test_a_broker_that_is_to_stay_outlives_its_parent() -> None:
    parent, pid, url, data_dir = start_parent("keep")
    parent.communicate("")
    try:
        assert parent.returncode == 0
        assert brokers.find(url=url, env={}).kind == "url"
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for("the broker ends", lambda: is_gone(pid))
    for path in sorted(data_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    data_dir.rmdir()
