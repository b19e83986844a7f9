"""What hosts report as not applied, as the publisher tells it: counted, by VPC, and listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from goalstate.dpm.convergence import Convergence, ExceptionReport, Why
from goalstate.dpm.core import Core
from goalstate.gs.derivation import Key
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind

WHY = {
    Why.BEHIND: api.Straggler.BEHIND,
    Why.NEVER_REPORTED: api.Straggler.NEVER_REPORTED,
    Why.REFUSED: api.Straggler.REFUSED,
    Why.PENDING: api.Straggler.PENDING,
    Why.RETRYING: api.Straggler.RETRYING,
    Why.DRIFT: api.Straggler.DRIFT,
}

#: Exceptions that are listed, unless the caller says otherwise.
LISTED = 1000


def tell_exceptions(
    reply: api.StatusReply,
    core: Core,
    convergence: Convergence,
    hosts: Iterable[str],
    request: api.StatusRequest,
) -> None:
    """Of these hosts, and only of the VPC asked for, if one is."""
    by_why: Counter[str] = Counter()
    by_vpc: Counter[str] = Counter()
    room = (request.max_exceptions or LISTED) if request.exceptions else 0
    for host in hosts:
        view = convergence.hosts.get(host)
        for exception in view.exceptions if view is not None else ():
            vpc = core.inventory.vpc_of(exception.stream, _key(host, exception))
            if request.vpc_id and vpc != request.vpc_id:
                continue
            by_why[exception.why.value] += exception.stands_for
            by_vpc[vpc] += exception.stands_for
            if len(reply.exception_list) < room:
                _tell(reply.exception_list.add(), host, vpc, exception)
    reply.exceptions.update(by_why)
    reply.exceptions_by_vpc.update(by_vpc)


def _key(host: str, exception: ExceptionReport) -> Key:
    try:
        kind = Kind(exception.kind)
    except ValueError:
        return Key(Kind.VPC, "")  # of a kind that is not known here
    return Key(kind, exception.id, host if kind is Kind.SUBSCRIPTION else "")


def _tell(told: api.HostException, host: str, vpc: str, exception: ExceptionReport) -> None:
    told.host = host
    told.vpc = vpc
    told.stream = str(exception.stream)
    told.epoch, told.sequence = exception.mark
    told.type, told.id, told.revision = exception.kind, exception.id, exception.revision
    told.why = WHY[exception.why]
    told.reason = exception.reason
    told.attempts, told.count = exception.attempts, exception.stands_for
