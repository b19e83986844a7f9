"""The client of a run: sends intents until they are decided, and waits for each that was accepted.

It asks whoever serves. When that is gone, or did not know, it asks the next one the same, as a
caller must: an intent may then be in the log although its first asking was never answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Protocol

from goalstate.dpm.core import Requirement
from goalstate.dpm.engine import Engine, Outcome
from goalstate.dpm.errors import NotServing, Overloaded, UnknownChange
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import Mark, StreamId
from goalstate.scale.simulate import checks
from goalstate.scale.simulate.checks import Streams, Told, Violation
from goalstate.scale.simulate.hosts import Agent
from goalstate.scale.simulate.processes import Process
from goalstate.scale.simulate.timeline import MS_NS, SECOND_NS, Due, Timeline

_ASK_AGAIN_NS = 200 * MS_NS


class Around(Protocol):
    """What the client lives in."""

    timeline: Timeline
    processes: list[Process]
    all_agents: dict[str, list[Agent]]
    streams: Streams
    reports: Told
    counts: Counter[str]

    def say(self, text: str) -> None: ...

    def fail(self, text: str) -> None: ...

    def after(self, delay_ns: int, what: Callable[[], None]) -> Due: ...

    def hosts_may_have_changed(self, engine: Engine) -> None: ...


class _Request:
    """An intent on its way; asked again until it is decided."""

    def __init__(self, name: str, message: intent_pb2.Intent) -> None:
        self.name = name
        self.message = message
        self.outcome: Outcome | None = None
        self.refused = False
        #: Somebody was asked and did not answer: it may be in the log.
        self.uncertain = False
        self.waiting = False
        self.converged = False
        #: For each requirement the hosts that it was for, and their subscriptions.
        self.concerned: list[dict[str, int]] = []
        self.since_ns = 0
        #: By host the incarnation and number of the report that was heard last then.
        self.heard: dict[str, tuple[int, int]] = {}

    @property
    def decided(self) -> bool:
        return self.refused or self.outcome is not None


class Client:
    def __init__(self, around: Around) -> None:
        self._around = around
        self._requests: list[_Request] = []

    def send(self, name: str, intent: Intent) -> None:
        request = _Request(name, intent_codec.to_proto(intent))
        self._requests.append(request)
        self._ask(request)

    def undecided(self) -> list[str]:
        """Intents that nobody has decided about, in words."""
        return [f"{r.name} is not decided" for r in self._requests if not r.decided]

    def waiting(self) -> list[str]:
        """Waits that have not ended, in words."""
        return [
            f"the wait for {r.name} has not ended"
            for r in self._requests
            if r.waiting and not r.converged
        ]

    def _ask(self, request: _Request) -> None:
        """Have an engine decide about an intent; again, if none does."""
        around = self._around
        process = next((p for p in around.processes if p.serving), None)
        engine = process.serving if process is not None else None
        if process is None or engine is None or process.loop is None:
            around.after(_ASK_AGAIN_NS, partial(self._ask, request))
            return
        loop = process.loop

        answered = False

        async def ask() -> None:
            nonlocal answered
            try:
                outcome = await engine.apply(request.message, request.name)
            except IntentRejected as error:
                request.refused = True
                around.counts["intents refused"] += 1
                around.say(f"{request.name} is refused: {error}")
            except Overloaded as error:
                around.counts["intents shed"] += 1
                around.say(f"{request.name} is shed: {error}")
            except NotServing as error:
                request.uncertain = True
                around.say(f"{request.name} is not decided: {error}")
            else:
                self._accepted(request, outcome, engine)
            answered = True

        loop.call_soon(lambda: loop.create_task(ask()))

        def look() -> None:
            if request.decided:
                return
            gone = process.engine is not engine
            request.uncertain |= gone
            if gone or answered:
                self._ask(request)
            else:
                around.after(_ASK_AGAIN_NS, look)

        around.after(_ASK_AGAIN_NS, look)

    def _accepted(self, request: _Request, outcome: Outcome, engine: Engine) -> None:
        around = self._around
        if request.decided:
            return
        request.outcome = outcome
        around.counts["intents accepted"] += 1
        around.say(
            f"{request.name} is change {outcome.change}"
            if outcome.changed_objects
            else f"{request.name} changes nothing"
        )
        around.hosts_may_have_changed(engine)
        if outcome.changed_objects:
            request.waiting = True
            self._wait(request)

    def _wait(self, request: _Request) -> None:
        """Wait until the change is on its hosts; anew, if the publisher that waits is gone."""
        around = self._around
        process = next((p for p in around.processes if p.serving), None)
        engine = process.serving if process is not None else None
        if process is None or engine is None or process.loop is None:
            around.after(_ASK_AGAIN_NS, partial(self._wait, request))
            return
        loop, outcome = process.loop, request.outcome
        assert outcome is not None
        request.since_ns = around.timeline.now_ns
        views = engine.convergence.hosts
        request.heard = {host: (v.incarnation, v.number) for host, v in views.items()}
        request.concerned = [checks.followers(engine.core, r) for r in outcome.requirements]

        async def wait() -> None:
            try:
                progress = await engine.wait(
                    change=outcome.change, quorum=1.0, timeout_s=1e9, max_stragglers=3
                )
            except UnknownChange as error:
                around.fail(f"{request.name} was acknowledged as a change, but {error}")
            except NotServing:
                around.after(_ASK_AGAIN_NS, partial(self._wait, request))
            else:
                if progress.converged and not request.converged:
                    self._converged(request, engine, progress.expired, outcome.requirements)

        loop.call_soon(lambda: loop.create_task(wait()))

        def look() -> None:
            if request.converged:
                return
            if process.engine is not engine:
                self._wait(request)
            else:
                around.after(SECOND_NS, look)

        around.after(SECOND_NS, look)

    def _converged(
        self,
        request: _Request,
        engine: Engine,
        expired: list[str],
        requirements: list[Requirement],
    ) -> None:
        around = self._around
        request.converged = True
        around.counts["waits ended"] += 1
        around.say(f"{request.name} has converged" + (f", without {expired}" if expired else ""))
        # The one that waited may not know yet that another one serves, or served until it crashed.
        cores = (p.engine.core if p.engine is not None else p.former for p in around.processes)
        core = max(
            (core for core in cores if core is not None),
            key=lambda core: (core.epoch, core.change),
        )
        views = engine.convergence.hosts
        heard = {
            host: {one.incarnation, request.heard.get(host, (0, 0))[0]}
            for host, one in views.items()
        }
        agents = checks.judged(around.all_agents, request.since_ns, heard)

        def has_left(agent: Agent, stream: StreamId, mark: Mark) -> bool:
            view = views.get(agent.host)
            if view is None or view.incarnation != agent.incarnation:
                return False
            incarnation, number = request.heard.get(agent.host, (0, 0))
            before = number if incarnation == agent.incarnation else 0
            reports = around.reports
            return reports.has_left(agent, stream, view.number) or (
                reports.had(agent, stream, mark, before)
            )

        for requirement, concerned in zip(requirements, request.concerned, strict=True):
            try:
                checks.check_wait(
                    requirement, concerned, core, agents, around.streams, expired, has_left
                )
            except Violation as error:
                around.fail(f"{request.name}: {error}")

    def check_log(self, accepted: list[log_pb2.Change]) -> None:
        """What was answered is what the log says. Raises Violation."""
        names = {change.traceparent for change in accepted}
        for request in self._requests:
            outcome = request.outcome
            if outcome is not None and outcome.changed_objects:
                known = accepted[outcome.change - 1] if outcome.change <= len(accepted) else None
                if known is None or known.traceparent != request.name:
                    found = known.traceparent if known is not None else "nothing"
                    raise Violation(
                        f"{request.name} was acknowledged as change {outcome.change}; "
                        f"the log has {found} there"
                    )
            if request.refused and not request.uncertain and request.name in names:
                raise Violation(f"{request.name} was refused, and is in the log")
