"""Our agents as processes, as a test drives them: started, looked into, killed."""

from __future__ import annotations

from pathlib import Path

from goalstate.agent.config import AgentConfig
from goalstate.cli import inspection
from goalstate.cli.errors import CommandError
from goalstate.cli.held import Held
from goalstate.gs.naming import SimulatedHost, simulated_host
from goalstate.testkit.errors import KitError, NotAnswered, hide
from goalstate.testkit.process import Process, settings_environment, with_logs
from goalstate.testkit.region import Region

__tracebackhide__ = hide

#: Seconds for which a host counts as live after a report. Short: a DPM that was restarted hears of
#: every host within a third of it.
LEASE_S = 6.0
#: Hosts that share an inbox, unless a test says otherwise.
GROUP_SIZE = 4


class Fleet:
    """One agent process and the hosts that it plays."""

    def __init__(self, process: Process, hosts: list[SimulatedHost]) -> None:
        self.process = process
        self.hosts = [host.id for host in hosts]
        #: Group of each host, whose inbox is `inbox/GROUP`.
        self.groups = {host.id: host.group for host in hosts}

    @property
    def address(self) -> str:
        """HOST:PORT of its inspection service; another one after a restart."""
        return str(self.process.facts["listen"])

    def held(self, host: str) -> Held:
        """What a host has applied, and what it says that it has not. Raises NotAnswered."""
        try:
            return inspection.of_host(self.address, host, Held)
        except CommandError as error:
            raise NotAnswered(with_logs(error.message, self.process.told())) from None

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()

    def stop(self) -> None:
        """End it in an orderly way."""
        self.process.stop()

    def restart(self) -> None:
        """Kill it if it still runs, and start it again. Raises ProcessFailed."""
        self.process.restart()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()


class Agents:
    """Starts agent processes in a region, and finds what their hosts hold."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.fleets: list[Fleet] = []

    def start(
        self,
        hosts: int = 1,
        *,
        first: int = 0,
        group_size: int = GROUP_SIZE,
        data_plane: str = "memory",
        state_dir: Path | None = None,
        register: bool | None = None,
        **settings: object,
    ) -> Fleet:
        """Start a process that plays hosts `first` to `first + hosts - 1`; it follows when this
        returns.

        `register`: make the hosts known to the region's DPM; None: if there is one. `settings` are
        further fields of `goalstate.agent.config.AgentConfig`. Raises ProcessFailed, NotAnswered,
        KitError.
        """
        region = self.region
        arguments = ["agent", "run", *region.common, "--inspect", "127.0.0.1:0"]
        arguments += ["--hosts", str(hosts), "--first", str(first), "--data-plane", data_plane]
        arguments += ["--group-size", str(group_size)]
        if state_dir is not None:
            arguments += ["--state-dir", str(state_dir)]
        if register or (register is None and region.dpms):
            arguments += ["--register", region.serving_dpm()]
        given = {"lease_s": LEASE_S, **settings}
        env = settings_environment("GOALSTATE_AGENT", AgentConfig, given)
        process = region.start(f"agents-{first}", *arguments, **env)
        prefix = str(settings.get("host_prefix", "host"))
        names = [
            simulated_host(number, prefix=prefix, group_size=group_size)
            for number in range(first, first + hosts)
        ]
        fleet = Fleet(process, names)
        self.fleets.append(fleet)
        return fleet

    @property
    def hosts(self) -> list[str]:
        """All hosts that are played."""
        return [host for fleet in self.fleets for host in fleet.hosts]

    def fleet_of(self, host: str) -> Fleet:
        """Who plays a host. Raises KitError."""
        for fleet in self.fleets:
            if host in fleet.hosts:
                return fleet
        played = ", ".join(self.hosts) or "none"
        raise KitError(f"no agent plays host {host!r}; these are played: {played}")

    def held(self, host: str) -> Held:
        """What a host has applied, and what it says that it has not. Raises NotAnswered."""
        return self.fleet_of(host).held(host)
