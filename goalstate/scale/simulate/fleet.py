"""The agents of a simulated region: one on each host that the intent names, in the host's group.

The hosts of a group are those of one agent process: they share a session with the publisher.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from goalstate.dpm.engine import Engine
from goalstate.gs.intent import ObjectKind
from goalstate.scale.simulate import sessions
from goalstate.scale.simulate.hosts import Agent, Surroundings
from goalstate.scale.simulate.processes import Process
from goalstate.scale.simulate.sessions import Link


class Around(Surroundings, sessions.Around, Protocol):
    """What the agents live in."""

    counts: Counter[str]


class Fleet:
    def __init__(self, around: Around) -> None:
        self.agents: dict[str, Agent] = {}
        #: By host, those that stopped included.
        self.all_agents: dict[str, list[Agent]] = {}
        #: The hosts that there are to be, each with its group.
        self.groups: dict[str, str] = {}
        #: By group.
        self.links: dict[str, Link] = {}
        self._around = around
        self._skews_ns: dict[str, int] = {}

    def run(self) -> None:
        """Have an agent run on each host of the region, in the host's group."""
        around = self._around
        for name in [n for n, a in self.agents.items() if self.groups.get(n) != a.group]:
            self.stop(name)
        for name, group in self.groups.items():
            if name not in self.agents:
                former = self.all_agents.setdefault(name, [])
                if group not in self.links:
                    self.links[group] = Link(around, group)
                incarnation, skew_ns = len(former) + 1, self._skews_ns.get(name, 0)
                agent = Agent(around, name, group, self.links[group], incarnation, skew_ns)
                former.append(agent)
                self.agents[name] = agent
                around.counts["agent starts"] += 1
                around.say(f"{name} starts its agent ({agent.incarnation}) in group {group}")
                agent.start()

    def stop(self, name: str) -> None:
        agent = self.agents.pop(name)
        agent.left = True
        agent.stop()
        self._around.say(f"{name} loses its agent")

    def set_clock(self, agent: Agent, by_ns: int) -> None:
        agent.jump(by_ns)
        self._skews_ns[agent.host] = agent.skew_ns

    def has_other_hosts(self, engine: Engine) -> bool:
        """Did the hosts of the region change since this was asked last?"""
        hosts = engine.core.desired.objects(ObjectKind.HOST)
        before, self.groups = self.groups, {host.id: host.group for host in hosts}
        return before != self.groups

    def lost(self, process: Process) -> None:
        """A publisher is gone, and its sessions with it."""
        for link in self.links.values():
            link.lost(process)
