"""The client makes changes at a rate, and finds out what came of those whose answer was lost."""

from __future__ import annotations

import asyncio
from random import Random

from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.scale.chaos.changes import Tenant
from goalstate.scale.chaos.ledger import Law, Ledger
from goalstate.scale.chaos.load import Load, by_key
from tests.scale.chaos.region import HOSTS, OnePublisher, tenants

#: Changes that a test has made.
CHANGES = 600


def made(publisher: OnePublisher) -> tuple[Ledger, list[Tenant]]:
    """So many changes, as fast as the publisher takes them."""

    async def play() -> tuple[Ledger, list[Tenant]]:
        ledger, all_of_them = Ledger(), tenants()
        load = Load(publisher, all_of_them, ledger, rate=50_000, seed=1)
        enough = asyncio.Event()

        async def watch() -> None:
            while sum(ledger.results.values()) < CHANGES and not ledger.findings:
                await asyncio.sleep(0.001)
            enough.set()

        async with asyncio.timeout(60):
            await load.build(HOSTS)
            await asyncio.gather(load.run(enough), watch())
        return ledger, all_of_them

    return asyncio.run(play())


def stands(publisher: OnePublisher, all_of_them: list[Tenant]) -> bool:
    """Is what the publisher has what the client was told?"""
    whole = asyncio.run(publisher.intent())
    held = {key: one for key, one in by_key(whole).items() if key[0].name != "HOST"}
    told = {key for tenant in all_of_them for key in tenant.model.objects}
    return held.keys() == told


def results(ledger: Ledger, result: str) -> int:
    return sum(count for (_, one), count in ledger.results.items() if one == result)


def test_all_valid_changes_are_accepted_and_what_is_not_valid_is_refused() -> None:
    publisher = OnePublisher()
    ledger, all_of_them = made(publisher)
    assert ledger.findings == []
    assert results(ledger, "accepted") == ledger.accepted > CHANGES // 2
    assert ledger.results["not valid", "refused"] > 0
    assert ledger.under_way == 0
    assert stands(publisher, all_of_them)


def test_a_change_whose_answer_was_lost_is_found_to_be_there_or_not() -> None:
    publisher, random = OnePublisher(), Random(1)
    publisher.lose = lambda intent: random.choice(("", "", "", "before", "after"))
    # One that is not valid is refused before its answer can be lost.
    ledger, all_of_them = made(publisher)
    assert ledger.findings == []
    assert results(ledger, "answer lost, there") > 20
    assert results(ledger, "answer lost, not there") > 20
    assert ledger.accepted == results(ledger, "accepted") + results(ledger, "answer lost, there")
    assert stands(publisher, all_of_them)


def test_a_change_of_which_half_is_there_is_a_finding() -> None:
    publisher = OnePublisher()

    def lose(intent: intent_pb2.Intent) -> str:
        return "half" if len(intent.ports) == 2 and not intent.vpcs else ""

    publisher.lose = lose
    ledger, all_of_them = made(publisher)
    assert {finding.law for finding in ledger.findings} == {Law.TORN}
    # It goes on from what is there.
    assert stands(publisher, all_of_them)


def test_a_valid_change_that_is_refused_is_a_finding() -> None:
    publisher = OnePublisher()
    ledger, all_of_them = Ledger(), tenants()
    change = all_of_them[0].create(1)
    ledger.send(change)
    ledger.refuse(change, "no")
    assert [finding.law for finding in ledger.findings] == [Law.REFUSED]
    assert not publisher.replies
