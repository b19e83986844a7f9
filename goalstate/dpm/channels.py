"""Which channel a VPC is on: sessions while it is small, Pulsar when it is large. Pure.

A message on a topic costs the broker once, however many follow; over sessions the publisher sends
it to each follower's process. So sessions are for VPCs with few ports, and where that is set, for
those whose security groups have few members.

Laws:

1.  What was chosen follows from the objects as they are, from the policy, and from what was chosen
    before: between the two thresholds a VPC stays where it is.
2.  A VPC that begins is small. One that is large at once is on Pulsar at once.
3.  The choice costs no more than a VPC on sessions can be large.
"""

from __future__ import annotations

from typing import NamedTuple

from goalstate.gs.after import Reason
from goalstate.gs.desired import Changes, Desired
from goalstate.gs.errors import Violation
from goalstate.gs.intent import ChannelChoice, Intent, ObjectKind
from goalstate.gs.streams import Channel

#: A VPC with more ports is on Pulsar: from about so many followers on, a change costs more over
#: sessions than over a topic (`bench/channels.py` measures it). Ports are what is known of
#: followers: at the most, each is on a host of its own, whose agent is a process of its own.
SESSION_PORTS = 20
#: So is one with more members in one security group. What a change of a group costs does not depend
#: on its members (same measurement), so by default this is no limit of its own.
SESSION_MEMBERS = SESSION_PORTS
#: A VPC on Pulsar comes back when it is below this share (a fraction) of both.
BACK = (4, 5)


class ChannelPolicy(NamedTuple):
    """When VPCs are on sessions; either being 0: never."""

    #: At most so many ports, bound or not.
    ports: int = 0
    #: And at most so many members in any one security group.
    members: int = 0

    @property
    def has_sessions(self) -> bool:
        return self.ports > 0 and self.members > 0


NEVER = ChannelPolicy()


def touched(changes: Changes) -> list[str]:
    """VPCs that may be on another channel after the changes, sorted."""
    vpcs: set[str] = set()
    for kind, before, after in changes:
        if kind is ObjectKind.PORT:
            vpcs.update(end.vpc_id for end in (before, after) if end is not None)
        elif kind is ObjectKind.VPC:
            vpcs.add((before or after).id)
    return sorted(vpcs)


def choose(policy: ChannelPolicy, desired: Desired, vpc_id: str, before: Channel | None) -> Channel:
    """Where a VPC that is there is to be; `before`: where it was, None if it begins."""
    choice = desired.get(ObjectKind.VPC, vpc_id).channel
    if not policy.has_sessions or choice == ChannelChoice.PULSAR:
        return Channel.PULSAR
    if choice == ChannelChoice.SESSION:
        return Channel.SESSION
    ports = len(desired.ports_of_vpc(vpc_id))
    if before is Channel.PULSAR:
        share, of = BACK
        small = ports * of < policy.ports * share and (
            _most_members(desired, vpc_id, ports) * of < policy.members * share
        )
    else:
        small = ports <= policy.ports and (
            ports <= policy.members or _most_members(desired, vpc_id, ports) <= policy.members
        )
    return Channel.SESSION if small else Channel.PULSAR


def _most_members(desired: Desired, vpc_id: str, ports: int) -> int:
    """Of the largest security group. Looks at the groups, or at the ports if these are fewer."""
    groups = desired.groups_of_vpc(vpc_id)
    if len(groups) <= ports:
        return max((len(desired.ports_of_group(group)) for group in groups), default=0)
    of_port = desired.table(ObjectKind.PORT)
    named = {g for port in desired.ports_of_vpc(vpc_id) for g in of_port[port].security_group_ids}
    return max((len(desired.ports_of_group(group)) for group in named), default=0)


def refused(intent: Intent, changes: Changes, policy: ChannelPolicy) -> list[Violation]:
    """Where an intent newly asks for sessions that the region does not have."""
    if policy.has_sessions:
        return []
    asking = {
        after.id
        for kind, before, after in changes
        if kind is ObjectKind.VPC
        and after is not None
        and after.channel == ChannelChoice.SESSION
        and (before is None or before.channel != after.channel)
    }
    return [
        Violation(
            f"vpcs[{index}].channel",
            Reason.NO_SESSIONS,
            f"VPC {vpc.id} is to be on sessions, and the region has none: its publisher is set to "
            "`channel: pulsar`",
        )
        for index, vpc in enumerate(intent.vpcs)
        if vpc.id in asking
    ]
