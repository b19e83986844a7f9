"""How much memory a simulated host takes in a fleet's process."""

from __future__ import annotations

from bench.machine import mib, resident_bytes
from bench.report import Section, Table
from bench.samples import written
from bench.system import Brokers, Progress, System
from goalstate.scale.generate import Region

METHOD = """\
Resident memory of a fleet's process (all hosts decode and hold everything, memory data plane, what
several of them read is parsed once in the process, as is the default), by the kernel's account,
after everything has converged: with 1 host, with {hosts:,} hosts that follow their inboxes only,
then with a VPC that has a port on each of them, then with {more:,} ports more in the VPC. Each
host has its own readers (2 in the end) and its own tables; the bytes of a neighbor are there once
in the process and are referred to by all of its hosts, so a host that is alone in its process takes
more for each (see "One agent"). Ports are created {piece} at a time, so that what is left of memory
that large messages needed in passing is not counted as held."""
_PIECE = 100


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    hosts = 500 if quick else 2000
    more = 1000
    broker = brokers.get()
    region = Region(hosts=hosts, vpcs=(hosts + more,), dhcp_share=0, pair_share=0)
    progress(f"memory: {hosts:,} hosts")
    with System(broker, "memory-1", progress) as system:
        system.apply_all(region.host_intents())
        alone = resident_bytes(system.fleet(1).pid)
    with System(broker, "memory", progress) as system:
        system.apply_all(region.host_intents())
        fleet = system.fleet(hosts)
        system.wait()
        sizes = {0: resident_bytes(fleet.pid)}
        created = 0
        for intent in region.vpc_intents(1, _PIECE):
            # The first ports are on one host each.
            ports = [
                port._replace(host_id=region.host(place).id) if place < hosts else port
                for place, port in enumerate(intent.ports, created)
            ]
            system.wait(system.apply(intent._replace(ports=ports)).change)
            created += len(ports)
            if created in (hosts, hosts + more):
                sizes[created] = resident_bytes(fleet.pid)
                progress(f"memory: {created:,} of {hosts + more:,} ports")
    idle, follow, full = sizes[0], sizes[hosts], sizes[hosts + more]
    neighbor = (full - follow) / hosts / more
    stream = (follow - idle) / hosts - neighbor * hosts
    rows = [
        ("the process with 1 host", mib(alone), "–"),
        ("a host that follows its inbox only", "–", written((idle - alone) / (hosts - 1) / 1024)),
        ("a VPC that it follows, without neighbors", "–", written(stream / 1024)),
        ("1,000 neighbors that it holds", "–", written(neighbor * 1000 / 1024)),
        (
            f"{hosts:,} hosts with {hosts + more:,} neighbors each",
            mib(full),
            written(full / hosts / 1024),
        ),
    ]
    return Section(
        "memory",
        "Memory per simulated host",
        METHOD.format(hosts=hosts, more=more, piece=_PIECE),
        [],
        [Table(("of", "process#", "KiB a host#"), rows)],
        {"hosts": hosts, "one_host": alone, "resident_by_ports": sizes},
    )
