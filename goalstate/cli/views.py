"""`status` and `show`: the publisher, its streams and hosts; one VPC, host or port."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from goalstate.cli import inspection
from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.held import Held
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import Output
from goalstate.cli.plain import plain
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import HostSummary
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import (
    HostException,
    HostStatus,
    StatusReply,
    Straggler,
    StreamStatus,
)
from goalstate.gs.resources import Kind
from goalstate.gs.streams import vpc_stream

#: Exceptions that `status --exceptions` lists.
LISTED = 10_000
#: Kinds of a VPC's objects in an intent, in the order in which they are shown.
_OBJECTS = ("subnets", "security_groups", "routers", "gateways", "ports", "dhcps")


def status(dpm: str, vpc: str, hosts: bool, exceptions: int, out: Output) -> ExitCode:
    """`exceptions`: so many are listed."""
    with connect(dpm) as client:
        reply = client.status(vpc, hosts=hosts, exceptions=exceptions)
    out.result(plain(reply))
    state = "" if reply.serving else f"not serving: {reply.problem or 'no reason given'}; "
    out.text(
        f"DPM at {dpm}: {state}writer {reply.writer or '(unnamed)'}, up {reply.uptime_s:.0f} s, "
        f"epoch {reply.epoch}, change {reply.change}",
        style="" if reply.serving else "red",
    )
    out.text(f"broker {reply.broker}")
    objects = ", ".join(f"{count} {kind}" for kind, count in sorted(reply.objects.items()))
    out.text(f"objects: {objects or 'none'}")
    out.text(
        f"hosts: {reply.hosts_live} live, {reply.hosts_expired} expired, "
        f"{reply.hosts_never_reported} never reported"
    )
    out.text(f"exceptions: {_counted(reply.exceptions) or 'none'}")
    if reply.exceptions_by_vpc:
        by_vpc = {vpc or "(none)": count for vpc, count in reply.exceptions_by_vpc.items()}
        out.text(f"  by VPC: {_counted(by_vpc, by_name=True)}")
    if reply.shards:
        out.text()
        _shards(reply.shards, out)
    if reply.streams:
        out.text()
        _streams(reply.streams, out)
    if reply.exception_list:
        out.text()
        _exception_list(reply, out)
    if reply.host_list:
        out.text()
        _hosts(reply.host_list, out)
    return ExitCode.OK


def _shards(shards: Any, out: Output) -> None:
    out.table(
        ("shard#", "this one", "served by", "at", "epoch#", "change#", "VPCs#"),
        (
            (
                one.shard,
                StatusReply.Role.Name(one.role).lower(),
                one.active_writer or f"nobody ({one.problem})",
                one.active_address or "-",
                one.epoch,
                one.change,
                one.vpcs,
            )
            for one in shards
        ),
    )


def _streams(streams: Any, out: Output) -> None:
    out.table(
        ("stream", "head", "resources#", "current#", "followers#", "digest", "channel", "topic"),
        (
            (
                stream.stream,
                f"{stream.epoch}/{stream.sequence}",
                stream.resources,
                stream.followers_current,
                stream.followers,
                stream.digest,
                stream.channel,
                stream.topic,
            )
            for stream in streams
        ),
    )
    out.text(
        "head: newest epoch/sequence published; followers: hosts that follow the stream; "
        "current: followers that have applied it up to its head"
    )


def _counted(counts: Mapping[str, int], *, by_name: bool = False, most: int = 20) -> str:
    """The counts that are not 0, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{name} {count}" if by_name else f"{count} {name}" for name, count in ordered if count]
    return ", ".join(told[:most]) + (", …" if len(told) > most else "")


def _exception_list(reply: StatusReply, out: Output) -> None:
    out.table(
        ("host", "why", "vpc", "stream", "at", "resource", "revision#", "attempts#", "reason"),
        (
            (
                one.host,
                Straggler.Why.Name(one.why).lower().replace("_", " "),
                one.vpc or "-",
                one.stream,
                f"{one.epoch}/{one.sequence}",
                _resource(one),
                one.revision or "-",
                one.attempts,
                one.reason,
            )
            for one in reply.exception_list
        ),
    )
    listed = sum(one.count for one in reply.exception_list)
    total = sum(reply.exceptions.values())
    if listed < total:
        out.text(f"… and {total - listed} more (--exceptions lists up to {LISTED})")


def _resource(one: HostException) -> str:
    if not one.id:
        return f"({one.count} summed up)" if one.count > 1 else "-"
    return f"{Kind(one.type).name.lower()}/{one.id}"


def _hosts(hosts: Any, out: Output) -> None:
    out.table(
        ("host", "group", "lease", "last report#", "ports#", "exceptions#", "speaks", "inspection"),
        (
            (
                host.host,
                host.group,
                host.lease,
                "-" if host.lease == "never reported" else f"{host.last_report_age_s:.1f} s",
                host.ports,
                host.exceptions,
                _speaks(host),
                host.inspection_address or "-",
            )
            for host in hosts
        ),
    )


def _speaks(host: HostStatus) -> str:
    """The format versions that the host's agent reads, and whether it must be pushed to."""
    formats = "+".join(f"v{number - 100}" for number in host.formats) or "-"
    return f"{formats} pushed" if host.proxied else formats


def show_vpc(dpm: str, id_: str, out: Output) -> ExitCode:
    with connect(dpm) as client:
        intent = client.intent(vpc_id=id_)
        vpc = next((vpc for vpc in intent.vpcs if vpc.id == id_), None)
        if vpc is None:
            raise InputError(f"there is no VPC {id_!r}", "`goalstate status` shows the VPC streams")
        streams = client.status(id_).streams
    objects = {name: getattr(intent, name) for name in _OBJECTS}
    hosts = sorted({port.host_id for port in intent.ports if port.host_id})
    out.result(
        {
            "vpc": plain(vpc),
            "objects": {name: [item.id for item in items] for name, items in objects.items()},
            "hosts": hosts,
            "streams": [plain(stream) for stream in streams],
        }
    )
    out.text(f"VPC {vpc.id} {_quoted(vpc.name)}: {vpc.cidr}, tunnel id {vpc.tunnel_id}")
    out.text(f"project {vpc.project_id or '-'}; ports on {len(hosts)} hosts")
    out.table(
        ("objects", "count#", "ids"),
        ((name.replace("_", " "), len(items), _some(items)) for name, items in objects.items()),
    )
    out.text()
    _streams(streams, out)
    return ExitCode.OK


def show_host(dpm: str, id_: str, out: Output) -> ExitCode:
    with connect(dpm) as client:
        host = client.host(id_)
        known = _host_status(client, id_)
    address = known.inspection_address
    held = inspection.of_host(address, id_, Held) if address else None
    out.result(
        {
            "host": plain(host),
            "status": plain(known),
            "applied": plain(held.summary) if held else None,
            "ports": [plain(port) for port in held.all(Kind.PORT)] if held else [],
            "resources": {kind.name.lower(): held.count(kind) for kind in Kind} if held else {},
        }
    )
    out.text(f"host {host.id}: {host.ip_address} {host.mac_address}, group {host.group or '-'}")
    out.text(
        f"lease {known.lease}, {known.ports} ports, {known.exceptions} exceptions, "
        f"inspection at {address or '(no address)'}"
    )
    if held is None:
        out.note("what it has applied is not known: no agent process says that it plays this host")
        return ExitCode.UNDECIDED
    summary = held.summary
    if summary.counting:
        out.text("a counting host: streams of VPCs and security groups are checked, not decoded")
    counts = ", ".join(f"{held.count(k)} {k.name.lower()}" for k in Kind if held.count(k))
    out.text(f"holds {summary.resources} resources ({counts or 'none decoded'})")
    out.text()
    out.table(
        ("stream", "applied", "digest"),
        ((s.stream, f"{s.epoch}/{s.sequence}", s.digest.hex()) for s in summary.streams),
    )
    if held.count(Kind.PORT):
        out.text()
        out.table(("port", "vpc", "addresses", "mac", "state", "groups"), _ports(held))
    if summary.exceptions:
        out.text()
        out.table(("exception", "resource", "stream", "reason"), _exceptions(summary))
    return ExitCode.OK


def _ports(held: Held) -> Iterator[tuple[str, ...]]:
    for port in held.all(Kind.PORT):
        yield (
            port.id,
            port.vpc_id,
            ", ".join(ip.ip_address for ip in port.fixed_ips),
            port.mac_address,
            "up" if port.admin_state_up else "down",
            ", ".join(group.id for group in port.security_group_ids) or "-",
        )


def _exceptions(summary: HostSummary) -> Iterator[tuple[str, ...]]:
    for exception in summary.exceptions:
        status_name = type(exception).Status.Name(exception.status).lower()
        name = Kind(exception.type).name.lower()
        yield status_name, f"{name}/{exception.id}", exception.stream, exception.reason


def _host_status(client: DataPlaneManager, id_: str) -> HostStatus:
    listed = client.status(hosts=True).host_list
    return next(
        (one for one in listed if one.host == id_), HostStatus(host=id_, lease="never reported")
    )


def show_port(dpm: str, id_: str, out: Output) -> ExitCode:
    with connect(dpm) as client:
        port = client.port(id_)
        host = client.host(port.host_id) if port.host_id else intent_pb2.Host()
        vpc = client.status(port.vpc_id, hosts=True)
    stream = next((s for s in vpc.streams if s.stream == _stream_of(port)), StreamStatus())
    where = inspection.addresses(vpc.host_list)
    known, stale, lacking, counting, unknown = _neighbor_everywhere(port, host, where, out)
    unknown += [one.host for one in vpc.host_list if one.host not in where]
    applied: bool | None = None
    if port.host_id in where:
        own = {port.host_id: where[port.host_id]}
        for answer in inspection.applied(own, Held, kind=Kind.PORT):
            if port.host_id in answer.held:
                applied = answer.held[port.host_id].get(Kind.PORT, id_) is not None
    out.result(
        {
            "port": plain(port),
            "host": plain(host) if port.host_id else None,
            "applied_on_host": applied,
            "stream": plain(stream),
            "neighbor": {
                "known_by": len(known),
                "other_place": sorted(stale),
                "lacking": sorted(lacking),
                "counting_hosts": len(counting),
                "unknown_hosts": len(unknown),
            },
        }
    )
    out.text(f"port {port.id} {_quoted(port.name)} in VPC {port.vpc_id}, MAC {port.mac_address}")
    for ip in port.fixed_ips:
        out.text(f"  {ip.ip_address} in subnet {ip.subnet_id}")
    for pair in port.allowed_address_pairs:
        out.text(f"  also {pair.ip_address} {pair.mac_address}".rstrip())
    out.text(f"security groups: {', '.join(port.security_group_ids) or 'none (unfiltered)'}")
    if port.admin_down:
        out.text("switched off")
    if not port.host_id:
        out.text("not bound to a host: nobody needs it")
        return ExitCode.OK
    there = {True: "applied there", False: "NOT applied there", None: "not known whether applied"}
    out.text(f"on host {host.id} ({host.ip_address}): {there[applied]}")
    counts = (
        (known, "on {} hosts"),
        (stale, "at another place on {}"),
        (lacking, "lacking on {}"),
        (counting, "{} hosts count only"),
        (unknown, "{} unknown"),
    )
    told = [words.format(len(hosts)) for hosts, words in counts if hosts]
    out.text(f"as a neighbor: {', '.join(told) or 'no hosts in this VPC'}")
    for name, hosts in (("at another place", stale), ("lacking", lacking)):
        if hosts:
            out.text(f"  {name}: {', '.join(sorted(hosts)[:20])}")
    return ExitCode.OK


def _stream_of(port: intent_pb2.Port) -> str:
    return str(vpc_stream(port.vpc_id))


def _neighbor_everywhere(
    port: intent_pb2.Port, host: intent_pb2.Host, where: dict[str, str], out: Output
) -> tuple[list[str], list[str], list[str], list[str], list[str]]:
    """Hosts of the port's VPC that have it as a neighbor, at another place, not at all; that only
    count; and that do not answer."""
    stream = _stream_of(port)
    found: tuple[list[str], ...] = ([], [], [], [], [])
    known, stale, lacking, counting, unknown = found
    with out.progress("hosts asked", len(where)) as bar:
        for answer in inspection.applied(where, Held, stream=stream, kind=Kind.NEIGHBOR):
            bar.advance(len(answer.hosts))
            for name in answer.hosts:
                held = answer.held.get(name)
                entry = held.get(Kind.NEIGHBOR, port.id) if held is not None else None
                if held is None:
                    unknown.append(name)
                elif held.summary.counting:
                    counting.append(name)
                elif entry is None:
                    lacking.append(name)
                elif entry.host_ip_address != host.ip_address:
                    stale.append(name)
                else:
                    known.append(name)
    return known, stale, lacking, counting, unknown


def _quoted(name: str) -> str:
    return f"“{name}”" if name else "(no name)"


def _some(items: Any, most: int = 8) -> str:
    ids = [item.id for item in items[:most]]
    return ", ".join(ids) + (", …" if len(items) > most else "")
