"""How much memory a simulated host takes in a fleet's process."""

from __future__ import annotations

from bench.machine import kib, mib, resident_bytes
from bench.report import Section, Table
from bench.samples import written
from bench.system import Brokers, Progress, System
from goalstate.scale.generate import Region

METHOD = """\
Resident memory of a fleet's process (all hosts decode and hold everything, memory data plane; what
several of them read is parsed once in the process, as is the default), by the kernel's account,
after everything has converged: with 1 host, with {hosts:,} hosts that follow their inboxes only,
then with a VPC that has a port on each of them, then with {more:,} ports more in the VPC. "A host"
is what the process has beyond one with 1 host, divided by the hosts: readers (2 in the end), state
and tables, all its own. "A neighbor held" is what it grew by with the VPC, divided by hosts and
neighbors: the VPC's readers are in it. The bytes of a neighbor are there once in the process, and
all of its hosts refer to them; a host that is alone in its process takes more (see "One agent").
Ports are created {piece} at a time, so that memory that large messages took in passing does not
count as held."""
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
    idle = sizes[0]
    rows = [
        ("1 host, no VPC", mib(alone), "–", "–"),
        (f"{hosts:,} hosts, no VPC", mib(idle), kib((idle - alone) / (hosts - 1)), "–"),
    ]
    for neighbors, size in list(sizes.items())[1:]:
        rows.append(
            (
                f"{hosts:,} hosts that hold {neighbors:,} neighbors each",
                mib(size),
                kib((size - alone) / (hosts - 1)),
                written((size - idle) / hosts / neighbors),
            )
        )
    return Section(
        "memory",
        "Memory per simulated host",
        METHOD.format(hosts=hosts, more=more, piece=_PIECE),
        [],
        [Table(("process of", "resident#", "KiB a host#", "bytes a neighbor held#"), rows)],
        {"hosts": hosts, "one_host": alone, "resident_by_ports": sizes},
    )
