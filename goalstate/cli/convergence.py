"""`wait` and `watch`: has everybody concerned applied it, and if not, who has not and why."""

from __future__ import annotations

from typing import Any

from goalstate.cli.errors import ExitCode, InputError, Undecided
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import Output
from goalstate.cli.plain import plain
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import (
    ApplyReply,
    Latency,
    RepublishReply,
    Straggler,
    WaitReply,
    WaitRequest,
)


def request(
    *,
    vpc: str = "",
    change: int = 0,
    shard: int | None = None,
    everything: bool = False,
    quorum: float = 1.0,
    timeout_s: float = 60.0,
    stragglers: int = 20,
) -> WaitRequest:
    """What is waited for. Raises InputError unless exactly one target is given."""
    targets = [bool(vpc), bool(change), everything].count(True)
    if targets != 1:
        raise InputError(
            "several things to wait for" if targets else "nothing to wait for",
            "give exactly one of --vpc, --change and --all",
        )
    if shard is not None and not change:
        raise InputError("a shard without a change", "--shard goes with --change")
    if not 0 < quorum <= 1:
        raise InputError(f"a quorum of {quorum:g} is none", "give a share over 0 and up to 1")
    if timeout_s < 0:
        raise InputError("a timeout below 0 is none", "give seconds; 0 asks how things are now")
    wanted = WaitRequest(quorum=quorum, timeout_s=timeout_s, max_stragglers=stragglers)
    if vpc:
        wanted.vpc_id = vpc
    elif change:
        wanted.change = change
        if shard is not None:
            wanted.shard = shard
    else:
        wanted.all = True
    return wanted


def of_reply(wanted: WaitRequest, reply: ApplyReply | RepublishReply) -> None:
    """Wait for what was answered so: one change by its number, those of several shards by
    everything published so far."""
    if len(reply.shard_changes) > 1:
        wanted.all = True
        return
    wanted.change = reply.change
    if reply.shard_changes:
        wanted.shard = reply.shard_changes[0].shard


def wait(dpm: str, wanted: WaitRequest, out: Output) -> ExitCode:
    with connect(dpm) as client:
        reply = waited(client, wanted, out)
    out.result(document(reply))
    describe(reply, out)
    return exit_code(reply)


def waited(client: DataPlaneManager, wanted: WaitRequest, out: Output) -> WaitReply:
    """The answer at the end; progress is shown meanwhile where somebody sees it."""
    if not out.interactive:
        return client.wait(wanted)
    with out.progress("hosts converged") as bar:
        last: WaitReply | None = None
        for last in client.watch(wanted):
            bar.update(completed=last.hosts_applied, total=last.hosts_needed)
    if last is None:
        raise Undecided("the DPM ended the wait without an answer", "try again")
    return last


def watch(dpm: str, wanted: WaitRequest, out: Output) -> ExitCode:
    """Like `wait`, and every step is printed on its way."""
    last: WaitReply | None = None
    with connect(dpm) as client, out.progress("hosts converged") as bar:
        for last in client.watch(wanted):
            out.result(document(last))
            out.text(_progress(last))
            bar.update(completed=last.hosts_applied, total=last.hosts_needed)
    if last is None:
        raise Undecided("the DPM ended the watch without an answer", "try again")
    describe(last, out)
    return exit_code(last)


def exit_code(reply: WaitReply) -> ExitCode:
    return ExitCode.OK if reply.converged else ExitCode.UNDECIDED


def document(reply: WaitReply) -> dict[str, Any]:
    return plain(reply)


def describe(reply: WaitReply, out: Output) -> None:
    """The answer in words, with the stragglers."""
    head = "converged" if reply.converged else "not converged"
    out.text(
        f"{head}: {reply.hosts_applied} of {reply.hosts} hosts have applied it "
        f"({reply.hosts_needed} needed) after {reply.elapsed_s:.3f} s",
        style="green" if reply.converged else "red",
    )
    _latency("latency", reply.latency, out)
    _latency("latency of the revocation", reply.revocation_latency, out)
    if reply.expired_hosts:
        out.text(f"left out, since their lease expired: {', '.join(reply.expired_hosts)}")
    if reply.stragglers:
        shown = f"{len(reply.stragglers)} of {reply.stragglers_total}"
        out.text(f"stragglers ({shown}):")
        out.table(
            ("host", "why", "stream", "applied", "wanted", "resource", "reason"),
            ((*_straggler(straggler),) for straggler in reply.stragglers),
        )


def _latency(name: str, latency: Latency, out: Output) -> None:
    if latency.count:
        out.text(
            f"{name} over {latency.count} hosts ({latency.clock or 'clock not stated'}): "
            f"p50 {latency.p50_ms:.1f} ms, p90 {latency.p90_ms:.1f} ms, "
            f"p99 {latency.p99_ms:.1f} ms, last host {latency.max_ms:.1f} ms"
        )


def _straggler(straggler: Straggler) -> tuple[str, ...]:
    return (
        straggler.host,
        Straggler.Why.Name(straggler.why).lower().replace("_", " "),
        straggler.stream or "-",
        straggler.applied or "-",
        straggler.wanted or "-",
        straggler.resource or "-",
        straggler.reason or "-",
    )


def _progress(reply: WaitReply) -> str:
    return (
        f"{reply.elapsed_s:8.3f} s  {reply.hosts_applied} of {reply.hosts_needed} needed hosts, "
        f"{reply.stragglers_total} stragglers"
    )
