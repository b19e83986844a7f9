"""One answer of those of a region's shards. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api

_ROLE = api.StatusReply
#: Leases, the worst first: a host is as well off as in the shard where it is worst off.
_WORST = ("never reported", "expired", "live")


def merged_progress(steps: Mapping[int, api.WaitReply], max_stragglers: int) -> api.WaitReply:
    """How far all shards are; of one alone, that."""
    if len(steps) == 1:
        (step,) = steps.values()
        return step
    whole = api.WaitReply(converged=all(step.converged for step in steps.values()))
    expired: set[str] = set()
    for shard, step in sorted(steps.items()):
        whole.hosts += step.hosts
        whole.hosts_applied += step.hosts_applied
        whole.hosts_needed += step.hosts_needed
        whole.stragglers_total += step.stragglers_total
        whole.elapsed_s = max(whole.elapsed_s, step.elapsed_s)
        expired.update(step.expired_hosts)
        for straggler in step.stragglers[: max(0, (max_stragglers or 20) - len(whole.stragglers))]:
            straggler.shard = shard
            whole.stragglers.append(straggler)
        _merge_latency(whole.latency, step.latency)
        _merge_latency(whole.revocation_latency, step.revocation_latency)
    whole.expired_hosts.extend(sorted(expired))
    return whole


def _merge_latency(whole: api.Latency, one: api.Latency) -> None:
    if not one.count:
        return
    whole.count += one.count
    for field in ("p50_ms", "p90_ms", "p99_ms", "max_ms"):
        setattr(whole, field, max(getattr(whole, field), getattr(one, field)))
    whole.clock = max(whole.clock, one.clock, key=len)  # the longer one says: an upper bound


def merged_status(statuses: Sequence[api.StatusReply], max_exceptions: int) -> api.StatusReply:
    """What one publisher says of all shards, given in their order."""
    whole = api.StatusReply(
        writer=statuses[0].writer,
        broker=statuses[0].broker,
        uptime_s=statuses[0].uptime_s,
        serving=True,
    )
    hosts: dict[str, api.HostStatus] = {}
    roles = set()
    for shard, status in enumerate(statuses):
        roles.add(status.role)
        whole.epoch = max(whole.epoch, status.epoch)
        whole.change += status.change
        for kind, count in status.objects.items():
            # Hosts are in all shards, everything else is in one.
            known = whole.objects[kind]
            whole.objects[kind] = max(known, count) if kind == "host" else known + count
        whole.shards.add(
            shard=shard,
            role=status.role,
            serving=status.serving,
            problem=status.problem,
            epoch=status.epoch,
            change=status.change,
            active_writer=status.active_writer,
            active_address=status.active_address,
            vpcs=status.objects["vpc"],
        )
        if not status.serving and not status.active_writer:
            whole.serving = False
            whole.problem = whole.problem or f"shard {shard}: {status.problem}"
        for stream in status.streams:
            stream.shard = shard
            whole.streams.append(stream)
        for host in status.host_list:
            _add_host(hosts, host)
        for why, count in status.exceptions.items():
            whole.exceptions[why] += count
        for vpc, count in status.exceptions_by_vpc.items():
            whole.exceptions_by_vpc[vpc] += count
        whole.exception_list.extend(status.exception_list)
        # A host reports to all shards alike: the shard that has heard least of it counts.
        whole.hosts_never_reported = max(whole.hosts_never_reported, status.hosts_never_reported)
        whole.hosts_expired = max(whole.hosts_expired, status.hosts_expired)
    if not whole.serving or _ROLE.UNKNOWN in roles:
        whole.role = _ROLE.ACTIVE if _ROLE.ACTIVE in roles else _ROLE.UNKNOWN
    else:
        whole.role = _ROLE.ACTIVE if _ROLE.ACTIVE in roles else _ROLE.STANDBY
    known_hosts = whole.objects["host"]
    whole.hosts_live = max(0, known_hosts - whole.hosts_never_reported - whole.hosts_expired)
    listed = sorted(whole.exception_list, key=lambda one: one.host)[:max_exceptions]
    del whole.exception_list[:]
    whole.exception_list.extend(listed)
    whole.host_list.extend(hosts[name] for name in sorted(hosts))
    return whole


def _add_host(hosts: dict[str, api.HostStatus], host: api.HostStatus) -> None:
    before = hosts.setdefault(host.host, host)
    if before is host:
        return
    before.ports += host.ports
    before.exceptions += host.exceptions
    before.lease = min(before.lease, host.lease, key=_WORST.index)
    before.last_report_age_s = max(before.last_report_age_s, host.last_report_age_s)
    before.inspection_address = before.inspection_address or host.inspection_address
    if not before.formats:
        before.formats.extend(host.formats)
