"""A DPM as a process, as a test drives it: intents in, and waiting until the hosts have them."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from goalstate.cli import northbound
from goalstate.cli.errors import CommandError
from goalstate.cli.northbound import DataPlaneManager
from goalstate.dpm.config import DpmConfig
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentSyntaxError
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.testkit.errors import IntentRefused, KitError, NotAnswered, NotConverged, hide
from goalstate.testkit.process import Process, settings_environment, with_logs
from goalstate.testkit.region import Region

__tracebackhide__ = hide

#: YAML text (one or more documents), a file of it, or an intent as it is in Python.
Change = str | Path | Intent | intent_pb2.Intent

#: Seconds between two questions for a host that went silent.
_AGAIN_S = 0.1


class Dpm:
    """One DPM of a region, on a port that stays its own when it is started again."""

    def __init__(self, region: Region, name: str = "dpm", /, **settings: object) -> None:
        """`settings` are fields of `goalstate.dpm.config.DpmConfig`. Raises ProcessFailed."""
        self._region = region
        admin = ["--admin-url", region.broker.admin_url] if region.broker.admin_url else []
        serve = ["dpm", "serve", *region.common, *admin, "--listen"]
        env = settings_environment("GOALSTATE_DPM", DpmConfig, {"writer": name, **settings})
        self.process: Process = region.start(name, *serve, "127.0.0.1:0", **env)
        #: HOST:PORT of its northbound API.
        self.address = str(self.process.facts["listen"])
        self.process.arguments[self.process.arguments.index("127.0.0.1:0")] = self.address
        #: What it accepted from `apply`, in order.
        self.accepted: list[intent_pb2.Intent] = []
        self._channel = ExitStack()
        self._client: DataPlaneManager | None = None
        region.dpms.append(self.address)

    @property
    def client(self) -> DataPlaneManager:
        """Its northbound API. Raises NotAnswered."""
        if self._client is None:
            with self._answering():
                self._client = self._channel.enter_context(northbound.connect(self.address))
        return self._client

    def close(self) -> None:
        """Give the connection up; the process ends with its region."""
        self._client = None
        self._channel.close()

    def _answering(self) -> _Answering:
        """For a call: raises NotAnswered where it fails."""
        return _Answering(self)

    def told(self) -> str:
        """Whether it runs, and the end of its log: for failures."""
        return "\n".join(filter(None, (self._region.broker_told(), self.process.told())))

    # --- intents ---

    def apply(self, *changes: Change) -> api.ApplyReply:
        """Have intents accepted, in their order; gives the last answer.

        Raises IntentRefused if one is refused (those before and after it are accepted all the
        same), KitError for text that is no intent, NotAnswered.
        """
        intents = [intent for change in changes for intent in messages(change)]
        bound = self._region.bound
        last = api.ApplyReply()
        refused: list[tuple[int, api.ApplyReply]] = []
        with self._answering():
            replies = self.client.apply(intents, timeout_s=bound)
            for number, (intent, reply) in enumerate(zip(intents, replies, strict=True), 1):
                if reply.violations:
                    refused.append((number, reply))
                    continue
                self.accepted.append(intent)
                last = reply
        if refused:
            raise _refusal(refused, len(intents))
        return last

    def intent(self) -> intent_pb2.Intent:
        """The accepted intent as it stands. Raises NotAnswered."""
        with self._answering():
            return self.client.intent(timeout_s=self._region.bound)

    # --- convergence ---

    def wait(
        self,
        *,
        change: int = 0,
        vpc: str = "",
        quorum: float = 1.0,
        within: float | None = None,
        without_expired: bool = False,
    ) -> api.WaitReply:
        """Wait until the hosts concerned have a change, all of a VPC, or (as it is) everything.

        A host that is silent is waited for as well, unless the test says that hosts may be left
        out (`without_expired`). `within`: seconds. Raises NotConverged, which names the hosts that
        do not have it and why, and NotAnswered.
        """
        bound = self._region.within(within)
        end = time.monotonic() + bound
        request = api.WaitRequest(quorum=quorum)
        if change:
            request.change = change
        elif vpc:
            request.vpc_id = vpc
        else:
            request.all = True
        while True:
            request.timeout_s = max(end - time.monotonic(), 0.0)
            with self._answering():
                reply = self.client.wait(request)
            complete = reply.converged and (without_expired or not reply.expired_hosts)
            if complete or time.monotonic() > end:
                break
            time.sleep(_AGAIN_S)
        if not complete:
            message = _not_converged(request, reply, bound)
            raise NotConverged(with_logs(message, self._region.told()), reply)
        return reply

    def await_live(self, *, within: float | None = None) -> None:
        """Wait until it has heard of every host, as after a start. Raises ConditionNotMet."""

        def live() -> bool:
            status = self.status()
            return not status.hosts_never_reported and not status.hosts_expired

        self._region.until(live, "every host is live", within=within)

    def status(self, vpc: str = "", *, hosts: bool = False) -> api.StatusReply:
        """What it knows of streams, and with `hosts` of each host. Raises NotAnswered."""
        with self._answering():
            return self.client.status(vpc, hosts=hosts)

    # --- the process ---

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.close()
        self.process.kill()

    def stop(self) -> None:
        """End it in an orderly way."""
        self.close()
        self.process.stop()

    def restart(self) -> None:
        """Kill it if it runs, and start it again at the same address. Raises ProcessFailed."""
        self.close()
        self.process.restart()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP)."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()


class _Answering:
    def __init__(self, dpm: Dpm) -> None:
        self._dpm = dpm

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CommandError):
            self._dpm.close()
            raise NotAnswered(with_logs(error.message, self._dpm.told())) from None


def messages(change: Change) -> list[intent_pb2.Intent]:
    """The intents that a change is given as. Raises KitError for text that is none."""
    if isinstance(change, Intent):
        return [intent_codec.to_proto(change)]
    if isinstance(change, intent_pb2.Intent):
        return [change]
    if isinstance(change, Path):
        text, source = change.read_text("utf-8"), str(change)
    else:
        text, source = change, "the intent"
    try:
        return intent_codec.load_messages(text, source)
    except IntentSyntaxError as error:
        wrong = "\n".join(map(str, (error, *error.others)))
    raise KitError(wrong)


def _refusal(refused: list[tuple[int, api.ApplyReply]], of: int) -> IntentRefused:
    lines = []
    for number, reply in refused:
        which = f"intent {number} of {of}" if of > 1 else "the intent"
        lines.append(f"{which} is refused:")
        lines += [f"  {v.path}: {v.reason}: {v.message}" for v in reply.violations]
    return IntentRefused("\n".join(lines), [v for _, reply in refused for v in reply.violations])


def _not_converged(request: api.WaitRequest, reply: api.WaitReply, bound: float) -> str:
    what = "everything published so far"
    if request.WhichOneof("target") == "change":
        what = f"change {request.change}"
    elif request.vpc_id:
        what = f"VPC {request.vpc_id!r}"
    lines = [
        f"not converged within {bound:g} s: {what} is on {reply.hosts_applied} of {reply.hosts} "
        f"hosts concerned, {reply.hosts_needed} are needed"
    ]
    for one in reply.stragglers:
        why = api.Straggler.Why.Name(one.why).lower().replace("_", " ")
        place = f"{one.stream} is at {one.applied or 'nothing'}, wanted is {one.wanted}"
        more = ": ".join(filter(None, (one.resource, one.reason)))
        lines.append(f"  host {one.host}: {why}; {place}" + (f"; {more}" if more else ""))
    if reply.stragglers_total > len(reply.stragglers):
        lines.append(f"  … and {reply.stragglers_total - len(reply.stragglers)} more")
    if reply.expired_hosts:
        lines.append(f"  silent, their lease is over: {', '.join(reply.expired_hosts)}")
    return "\n".join(lines)
