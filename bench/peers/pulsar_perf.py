"""The limit: `pulsar-perf` of the broker's own distribution, which does no work but measuring."""

from __future__ import annotations

import os
import re
from functools import partial

from bench.peers.base import Place, Work
from bench.peers.pulsar_client import version
from bench.peers.runner import Result, Sizes, Task
from bench.system import MeasurementFailed
from goalstate.bus.apache import Installation, find_installation
from goalstate.bus.process import Child

_AGGREGATED = re.compile(r"Aggregated latency stats .*\bMax:\s*([\d.]+)")
_NOT_MEASURED = "it tells no more than the longest time to deliver"


def run_limit(place: Place, work: Work, sizes: Sizes) -> Result:
    """Its consumers are subscriptions, which acknowledge; messages have the sizes of ours.

    Raises MeasurementFailed, BusError.
    """
    broker = place.broker()
    how = (
        f"`consume` with {sizes.hosts:,} subscriptions, `produce` with as many messages as there "
        "are, of their mean size, not compressed; both in Java"
    )
    result = Result("pulsar-perf", version(broker.describe()).partition(",")[0], how)
    for task in (result.change, result.churn, result.join, result.storm):
        task.missing = _NOT_MEASURED
    found = find_installation(place.progress, fetch=False)
    for number in range(sizes.rounds):
        _measure(place, found, broker.url, work, sizes, number, result.state)
    return result


def _measure(
    place: Place,
    found: Installation,
    url: str,
    work: Work,
    sizes: Sizes,
    number: int,
    task: Task,
) -> None:
    topic = f"persistent://public/default/{place.scratch.name}-perf-{number}"
    count = len(work.state)
    size = sum(len(sent.payload) for sent in work.state) // count
    given = ["-u", url, topic]
    consume = ["consume", "-ns", f"{sizes.hosts}", "-m", f"{sizes.hosts * count}", *given]
    consumer = _child(place, found, f"consume-{number}", consume)
    consumer.await_ready(partial(_says, consumer, "Start receiving"), place.progress)
    produce = ["produce", "-db", "-m", f"{count}", "-s", f"{size}", "-r", "1000", *given]
    _child(place, found, f"produce-{number}", produce)
    consumer.await_ready(partial(_says, consumer, "Aggregated latency stats"), place.progress)
    told = _AGGREGATED.search(consumer.log.read_text("utf-8", errors="replace"))
    if not told:
        raise MeasurementFailed("pulsar-perf told no latency")
    task.last.append(float(told[1]))


def _child(place: Place, found: Installation, name: str, arguments: list[str]) -> Child:
    env = {**os.environ, "JAVA_HOME": str(found.java_home), "PULSAR_MEM": "-Xmx2g"}
    child = Child(
        [str(found.home / "bin/pulsar-perf"), *arguments],
        what=f"pulsar-perf {arguments[0]}",
        log=place.scratch / f"{name}.log",
        env={**env, "PULSAR_LOG_DIR": str(place.scratch)},
    )
    place.stack.callback(child.stop)
    return child


def _says(child: Child, text: str) -> bool:
    return text in child.log.read_text("utf-8", errors="replace")
