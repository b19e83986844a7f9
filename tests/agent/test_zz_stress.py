"""What a host ends with depends on what was published, not on the way that it came."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.bus.memory import Faults
from goalstate.gs.resources import Kind, Resource, configuration, references
from tests.agent.rig import (
    INBOX,
    STREAM,
    VPC,
    Rig,
    Sent,
    gone,
    group,
    neighbor,
    port,
    router,
    subnet,
    subscription,
    vpc,
)

Script = list[tuple[str, list[Resource]]]

#: What a script touches: a number stands for one of these.
MAKERS = [
    lambda n, r: subnet(f"subnet-{n}", r, name=f"name-{r}"),
    lambda n, r: group(f"group-{n}", r, ports=range(r % 3)),
    lambda n, r: neighbor(n, r, subnets=[f"subnet-{n % 2}"], host_ip=f"100.64.0.{r}"),
    lambda n, r: neighbor(n + 4, r, subnets=[f"subnet-{n % 2}"], host_ip=f"100.64.0.{r}"),
    lambda n, r: port(n, r, subnet_id=f"subnet-{n % 2}", groups=[f"group-{n % 2}"]),
    lambda n, r: router(r, subnet_id=f"subnet-{r % 2}"),
]


def script(steps: list[list[tuple[int, int, bool]]]) -> Script:
    """Messages from drawn numbers: (maker, object, delete), with revisions as they grow.

    As a publisher would write them: nothing refers to what is not there.
    """
    revisions: dict[tuple[Kind, str], int] = {}
    present: dict[tuple[Kind, str], Resource] = {(Kind.VPC, VPC): vpc()}
    written: Script = [("inbox", [subscription()]), ("vpc", [vpc()])]
    for step in steps:
        messages: dict[str, dict[tuple[Kind, str], Resource]] = {"inbox": {}, "vpc": {}}
        for maker, number, delete in step:
            made = MAKERS[maker](number, 1)
            key = (made.kind, made.id)
            revision = revisions.get(key, 0) + 1
            resource = MAKERS[maker](number, revision)
            used = {ref for one in present.values() for ref in needs(one)}
            if delete and key in present and key not in used:
                resource = resource._replace(payload=b"")
                del present[key]
            elif not delete and all(ref in present for ref in needs(resource)):
                present[key] = resource
            else:
                continue
            revisions[key] = revision
            messages["inbox" if made.kind is Kind.PORT else "vpc"][key] = resource
        written += [(where, list(some.values())) for where, some in messages.items() if some]
    return written


def needs(resource: Resource) -> list[tuple[Kind, str]]:
    return list(references(resource.kind, configuration(resource)))


def publish(rig: Rig, written: Script) -> Iterator[Sent]:
    for where, resources in written:
        yield (rig.inbox if where == "inbox" else rig.vpc).publish(*resources)


def outcome(rig: Rig) -> object:
    """All that must not depend on the path."""
    return (
        {
            stream_id: (
                stream.live.digest,
                stream.watermark,
                {kind: dict(some) for kind, some in stream.live.held.items() if some},
            )
            for stream_id, stream in rig.core.streams.items()
        },
        rig.in_plane(),
        set(rig.exceptions()),
    )


def plain(written: Script) -> Rig:
    rig = Rig()
    for sent in publish(rig, written):
        rig.put(sent)
        rig.run()
    return rig


steps = st.lists(
    st.lists(
        st.tuples(st.integers(0, len(MAKERS) - 1), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    max_size=12,
)


def settle(rig: Rig, random: Random) -> None:
    """Let everything arrive, and everything under way end."""
    for _ in range(1000):
        rig.run()
        if rig.waiting:
            rig.finish()
        elif rig.core.wakeup is not None and any(
            stream.reread_ns or stream.resync_ns for stream in rig.core.streams.values()
        ):
            rig.now = rig.core.wakeup
            rig.perform(rig.core.tick(rig.now))
        elif rig.broker.idle:
            return
    raise AssertionError("it does not settle")


@settings(max_examples=1500, deadline=None)
@given(steps, st.integers(0, 2**32), st.booleans())
def test_loss_duplication_and_reordering_change_nothing(
    drawn: list[list[tuple[int, int, bool]]], seed: int, slow: bool
) -> None:
    written = script(drawn)
    expected = plain(written)
    rig = Rig(
        faults=Faults(seed=seed, drop=0.1, duplicate=0.3, reorder=0.3), limit=3, deadline_s=10**6
    )
    rig.slow = slow
    random = Random(seed)
    for sent in publish(rig, written):
        rig.put(sent)
        while random.random() < 0.7 and rig.broker.step():
            pass
        if rig.waiting and random.random() < 0.5:
            rig.finish()
    # The end of a log shows no gap: what was dropped there shows when something follows.
    rig.broker.faults = Faults()
    rig.put(rig.inbox.publish())
    rig.put(rig.vpc.publish())
    settle(rig, random)
    expected.on_inbox()
    expected.on_vpc()
    assert outcome(rig) == outcome(expected)
    assert rig.agrees(rig.inbox)
    assert rig.agrees(rig.vpc)
    assert rig.in_plane() == rig.applied() | rig.applied(INBOX) - {"subscription/vpc/vpc-1"}


@settings(max_examples=500, deadline=None)
@given(steps, st.integers(0, 2**32))
def test_squashed_into_one_message_or_split_into_many_it_ends_the_same(
    drawn: list[list[tuple[int, int, bool]]], seed: int
) -> None:
    written = script(drawn)
    expected = plain(written)
    split = plain([(where, [one]) for where, some in written for one in some])
    assert outcome(split)[1:] == outcome(expected)[1:]  # type: ignore[index]
    newest: dict[str, dict[tuple[Kind, str], Resource]] = {"inbox": {}, "vpc": {}}
    for where, some in written:
        for one in some:
            newest[where][one.kind, one.id] = one
    squashed = plain([(where, list(some.values())) for where, some in newest.items()])
    assert outcome(squashed)[1:] == outcome(expected)[1:]  # type: ignore[index]
    random = Random(seed)
    shuffled = Rig()
    # The order between streams is nobody's promise.
    queues = {where: [s for w, s in written if w == where] for where in ("inbox", "vpc")}
    while any(queues.values()):
        where = random.choice([where for where, queue in queues.items() if queue])
        (shuffled.on_inbox if where == "inbox" else shuffled.on_vpc)(*queues[where].pop(0))
    assert outcome(shuffled) == outcome(expected)


@settings(max_examples=500, deadline=None)
@given(steps, st.integers(0, 2**32))
def test_reading_again_at_any_time_changes_nothing(
    drawn: list[list[tuple[int, int, bool]]], seed: int
) -> None:
    written = script(drawn)
    expected = plain(written)
    rig, random = Rig(deadline_s=10**6), Random(seed)
    for sent in publish(rig, written):
        rig.put(sent)
        if random.random() < 0.3:
            rig.perform(rig.core.position_gone(random.choice([INBOX, STREAM]), rig.now))
        while random.random() < 0.8 and rig.broker.step():
            pass
    settle(rig, random)
    assert outcome(rig) == outcome(expected)


@pytest.mark.parametrize("limit", [1, 2, 4096])
def test_leaving_and_coming_back_at_any_time_changes_nothing(limit: int) -> None:
    random = Random(limit)
    for _ in range(30):
        rig = Rig(limit=limit, deadline_s=10**6)
        rig.slow = True
        rig.join(vpc(), subnet("subnet-0"), *(neighbor(n, subnets=["subnet-0"]) for n in range(4)))
        wish = subscription()
        for _ in range(random.randrange(1, 6)):
            while rig.waiting and random.random() < 0.6:
                rig.finish()
            wish = gone(wish) if wish.payload else subscription(revision=wish.revision + 1)
            rig.on_inbox(wish)
        settle(rig, random)
        if wish.payload:
            assert rig.agrees(rig.vpc)
            assert len(rig.in_plane()) == 6
        else:
            assert rig.in_plane() == set()
            assert STREAM not in rig.core.streams
