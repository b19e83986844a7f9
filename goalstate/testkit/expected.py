"""What each host must hold, by the independent oracle, compared with what an agent holds.

The oracle (`goalstate.scale.oracle`) works from intents alone and shares nothing with the publisher
but the schema. Revisions are how a configuration travelled, and are not compared.

An agent of somebody else says what it holds as tables: word of the kind (vpc, subnet, port, dhcp,
neighbor, security_group, router, gateway) → id → configuration, as the Alcor message or its bytes.
From which stream it has a resource follows from what the resource is, and need not be told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from goalstate.cli import inspection, northbound
from goalstate.cli.comparison import Compared
from goalstate.cli.errors import CommandError
from goalstate.gs.resources import CONFIGURATION, STATES_FIELD
from goalstate.gs.streams import StreamKind
from goalstate.scale import oracle
from goalstate.scale.oracle import Difference, Oracle
from goalstate.testkit.agents import Agents
from goalstate.testkit.dpm import Change, messages
from goalstate.testkit.errors import ConditionNotMet, Differs, KitError, NotAnswered, hide
from goalstate.testkit.process import with_logs
from goalstate.testkit.region import Region

__tracebackhide__ = hide

#: What an agent holds: kind → id → configuration.
Tables = Mapping[str, Mapping[str, Message | bytes]]

#: Differences that a failure shows.
_SHOWN = 20
_MESSAGES: dict[str, Any] = {kind.name.lower(): CONFIGURATION[kind] for kind in STATES_FIELD}


class Expected:
    """What every host must hold after some intents."""

    def __init__(self, of: Oracle, region: Region) -> None:
        self._oracle = of
        self._region = region

    @property
    def hosts(self) -> list[str]:
        """All hosts of the intent."""
        return sorted(self._oracle.groups)

    def tables(self, host: str) -> dict[str, dict[str, Any]]:
        """What a host must hold: kind → id → configuration, without revisions.

        Raises KitError for a host that is not in the intent.
        """
        if host not in self._oracle.groups:
            known = ", ".join(self.hosts) or "none"
            raise KitError(f"there is no host {host!r} in the intent; there are {known}")
        found: dict[str, dict[str, Any]] = {kind: {} for kind in _MESSAGES}
        for _, expected in self._streams(host):
            for kind, table in expected.items():
                for id_, configuration in table.items():
                    # A copy: a test that alters it must not alter what is expected.
                    found[kind][id_] = type(configuration).FromString(
                        configuration.SerializeToString()
                    )
        return found

    def follows(self, host: str) -> set[str]:
        """The streams that a host must follow beside its inbox, as vpc/ID or sg/ID."""
        return set(self._oracle.follows.get(host, ()))

    def differences(
        self, host: str, held: Tables, *, follows: Iterable[str] | None = None
    ) -> list[Difference]:
        """Everything in which what a host holds differs from what it must hold; empty: nothing.

        `follows`: the streams that it follows beside its inbox; None: not compared. Raises KitError
        for tables that are none.
        """
        compared = oracle.Comparison(self._oracle, host)
        places = {
            (kind, id_): stream
            for stream, expected in self._streams(host)
            for kind, table in expected.items()
            for id_ in table
        }
        strange = []
        for kind, table in held.items():
            for id_, configuration in table.items():
                payload = _payload(kind, id_, configuration)
                stream = places.get((kind, id_))
                if stream is None:
                    strange.append(Difference(host, kind, id_, "must not be there"))
                    continue
                try:
                    compared.add(stream, kind, id_, payload)
                except DecodeError as error:
                    strange.append(Difference(host, kind, id_, f"these bytes are none: {error}"))
        for stream in self.follows(host) if follows is None else follows:
            compared.add_subscription(stream)
        return sorted([*compared.finish(), *strange])

    def assert_holds(
        self, host: str, held: Tables, *, follows: Iterable[str] | None = None
    ) -> None:
        """A host holds what it must, and nothing else. Raises Differs, with every difference."""
        found = self.differences(host, held, follows=follows)
        if found:
            raise Differs(_told(found), found)

    def await_holds(
        self, host: str, read: Callable[[], Tables], *, within: float | None = None
    ) -> None:
        """Wait until what `read()` gives is what the host must hold.

        Raises Differs, with what is different in the end, and the ends of the logs.
        """
        what = f"host {host} holds what it must"
        self._await(what, lambda: self.differences(host, read()), within)

    def assert_agents(self, agents: Agents, *, without: Collection[str] = ()) -> None:
        """Every host of the intent, but those without, is played by our agents and holds what it
        must.

        Of a counting host only the inbox is compared. Raises Differs, NotAnswered, and KitError
        where a host is not played.
        """
        found = self._of_agents(agents, without)
        if found:
            raise Differs(_told(found), found)

    def await_agents(
        self, agents: Agents, *, without: Collection[str] = (), within: float | None = None
    ) -> None:
        """Wait until `assert_agents` is true.

        Raises Differs, with what is different in the end, and the ends of the logs.
        """
        what = "our agents hold what they must"
        self._await(what, lambda: self._of_agents(agents, without), within)

    def _await(
        self, what: str, differences: Callable[[], list[Difference]], within: float | None
    ) -> None:
        found: list[Difference] = []

        def none() -> bool:
            found[:] = differences()
            return not found

        bound = self._region.within(within)
        try:
            self._region.until(none, what, within=bound)
        except ConditionNotMet:
            message = f"not within {bound:g} s: {_told(found)}"
            raise Differs(with_logs(message, self._region.told()), found) from None

    def _of_agents(self, agents: Agents, without: Collection[str]) -> list[Difference]:
        hosts = sorted({*agents.hosts, *self.hosts} - {*without})
        return [difference for host in hosts for difference in self._of_agent(agents, host)]

    def _of_agent(self, agents: Agents, host: str) -> list[Difference]:
        fleet = agents.fleet_of(host)
        try:
            compared = inspection.of_host(
                fleet.address, host, lambda summary: Compared(self._oracle, summary)
            )
        except CommandError as error:
            raise NotAnswered(with_logs(error.message, fleet.process.told())) from None
        return compared.finish()

    def _streams(self, host: str) -> Iterator[tuple[str, oracle.Expected]]:
        """What a host must hold, stream by stream."""
        if host in self._oracle.groups:
            yield f"inbox/{self._oracle.groups[host]}", self._oracle.inboxes[host]
            for stream in self._oracle.follows[host]:
                yield stream, self._oracle.streams[stream]


class Expecting:
    """Works out what hosts must hold: call it for that."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def __call__(self, *changes: Change, security_groups: str = "vpc-stream") -> Expected:
        """What follows from these intents in their order, as a DPM would accept them.

        Without any: from the intent that the region's DPM says it has accepted, as it stands now
        (`security_groups` is then as the DPM has it). Raises KitError where there is no DPM,
        NotAnswered.
        """
        if changes:
            intents = [intent for change in changes for intent in messages(change)]
            own_stream = security_groups == "own-stream"
        else:
            if not self._region.dpms:
                raise KitError("no DPM was started here: give the intents that are expected")
            try:
                with northbound.connect(self._region.serving_dpm()) as client:
                    intents = [client.intent(timeout_s=self._region.bound)]
                    streams = [status.stream for status in client.status().streams]
            except CommandError as error:
                raise NotAnswered(with_logs(error.message, self._region.told())) from None
            own_stream = any(s.startswith(f"{StreamKind.SECURITY_GROUP}/") for s in streams)
        found = oracle.expected(intents, security_groups_own_stream=own_stream)
        return Expected(found, self._region)


def _payload(kind: str, id_: str, configuration: Message | bytes) -> bytes:
    """Raises KitError."""
    expected = _MESSAGES.get(kind)
    if expected is None:
        raise KitError(f"{kind!r} is no kind of resource; the kinds are {', '.join(_MESSAGES)}")
    if isinstance(configuration, bytes):
        return configuration
    if not isinstance(configuration, expected):
        raise KitError(
            f"{kind} {id_}: a {expected.DESCRIPTOR.name} or its bytes were expected, "
            f"this is a {type(configuration).__name__}"
        )
    payload: bytes = configuration.SerializeToString()
    return payload


def _told(found: list[Difference]) -> str:
    hosts = sorted({one.host for one in found})
    who = f"host {hosts[0]} does" if len(hosts) == 1 else f"{len(hosts)} hosts do"
    lines = [f"{who} not hold what it must, {len(found)} differences:"]
    if len(hosts) > 1:
        lines[0] = lines[0].replace("what it must", "what they must")
    if len(found) == 1:
        lines[0] = lines[0].replace("differences", "difference")
    for one in found[:_SHOWN]:
        where = f"{one.host}: " if len(hosts) > 1 else ""
        lines.append(f"  {where}{one.kind} {one.id}: {one.what}")
    if len(found) > _SHOWN:
        lines.append(f"  … and {len(found) - _SHOWN} more")
    return "\n".join(lines)
