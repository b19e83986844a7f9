"""`trace`: asks the two hosts what they hold, and follows the packet (`reachability`).

The packet leaves from where intent has the source port, and goes where that host's neighbor entry
sends it: while a port moves, that may be the host where it was, and the packet arrives there for as
long as that host still holds the port.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from goalstate.cli import inspection
from goalstate.cli.errors import CommandError, ExitCode, InputError
from goalstate.cli.held import Held
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import Output
from goalstate.cli.reachability import (
    PROTOCOLS,
    Finding,
    Packet,
    Step,
    Verdict,
    arrive,
    choose_ends,
    leave,
    verdict,
)
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

_EXIT = {
    Verdict.DELIVERED: ExitCode.OK,
    Verdict.NOT_DELIVERED: ExitCode.REFUSED,
    Verdict.UNKNOWN: ExitCode.UNDECIDED,
}
_STYLE = {
    Verdict.DELIVERED: "green",
    Verdict.NOT_DELIVERED: "red",
    Verdict.UNKNOWN: "yellow",
}


class _Region(NamedTuple):
    client: DataPlaneManager
    addresses: dict[str, str]


def trace(
    dpm: str,
    source: str,
    destination: str,
    out: Output,
    *,
    protocol: str = "",
    dport: int = 0,
    version: int | None = None,
) -> ExitCode:
    protocol = protocol or ("tcp" if dport else "icmp")
    if protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {protocol!r}", f"use one of {', '.join(PROTOCOLS)}")
    if (protocol == "icmp") == bool(dport):
        raise InputError(
            "a port number goes with TCP and UDP, and with nothing else",
            "give --dport 1 to 65535 with --protocol tcp or udp",
        )
    with connect(dpm) as client:
        region = _Region(client, inspection.addresses(client.status(hosts=True).host_list))
        one, other = client.port(source), client.port(destination)
        ends = choose_ends(_ends(one), _ends(other), version)
        if ends is None:
            raise InputError(
                f"{source} and {destination} have no addresses of one IP version",
                "`goalstate show port ID` shows a port's addresses",
            )
        packet = Packet(one.vpc_id, *ends, protocol, dport)
        steps = _follow(packet, one, other, region)
    found = verdict(steps)
    out.result(
        {
            "verdict": found.value.replace(" ", "_"),
            "packet": packet._asdict()
            | {"source": ends[0]._asdict(), "destination": ends[1]._asdict()},
            "steps": [step._asdict() for step in steps],
        }
    )
    out.text(f"{packet.what} from {ends[0].ip} ({source}) to {ends[1].ip} ({destination})")
    out.table(
        ("", "host", "resource", "finding"),
        (
            ("ok" if step.finding is Finding.OK else step.finding.value.upper(), *_place(step))
            for step in steps
        ),
    )
    out.text(f"verdict: {found.value}", style=_STYLE[found])
    return _EXIT[found]


def _place(step: Step) -> tuple[str, str, str]:
    return step.host or "-", step.resource, step.text


def _ends(port: intent_pb2.Port) -> tuple[str, list[tuple[str, str]]]:
    return port.id, [(ip.subnet_id, ip.ip_address) for ip in port.fixed_ips]


def _follow(
    packet: Packet, source: intent_pb2.Port, destination: intent_pb2.Port, region: _Region
) -> list[Step]:
    for port in (source, destination):
        if not port.host_id:
            return [Step("", f"port/{port.id}", Finding.MISSING, "is not bound to a host")]
    if source.vpc_id != destination.vpc_id:
        text = f"is in VPC {destination.vpc_id}, the source in {source.vpc_id}: nothing joins them"
        return [Step("", f"port/{destination.id}", Finding.DENIED, text)]
    held = _held(source.host_id, region)
    if not isinstance(held, Held):
        return [held]
    departure = leave(packet, held)
    if departure.local:
        return [*departure.steps, *arrive(packet, departure, held)]
    if not departure.host_ip:
        return departure.steps
    there = _host_at(departure.host_ip, destination.host_id, region.client)
    steps = departure.steps
    if not there:
        text = f"names host address {departure.host_ip}, which no host has"
        return [*steps, Step(source.host_id, f"neighbor/{destination.id}", Finding.WRONG, text)]
    if there != destination.host_id:
        text = f"points at {there}; intent has the port on {destination.host_id} now"
        steps.append(Step(source.host_id, f"neighbor/{destination.id}", Finding.OK, text))
    arrived = _held(there, region)
    return [
        *steps,
        *(arrive(packet, departure, arrived) if isinstance(arrived, Held) else [arrived]),
    ]


def _held(host: str, region: _Region) -> Held | Step:
    """What a host holds now, or the step that says that it cannot be had."""
    address = region.addresses.get(host)
    if address is None:
        text = "no agent process says that it plays this host"
        return Step(host, f"host/{host}", Finding.UNKNOWN, text)
    try:
        return inspection.of_host(address, host, Held)
    except CommandError as error:
        return Step(host, f"host/{host}", Finding.UNKNOWN, error.message)


def _host_at(ip: str, expected: str, client: Any) -> str:
    """The host with an underlay address; "" if there is none."""
    if client.host(expected).ip_address == ip:
        return expected
    hosts = client.intent(kind=intent_pb2.HOST).hosts
    return next((host.id for host in hosts if host.ip_address == ip), "")
