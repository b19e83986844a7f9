"""The mailbox between a client's threads and the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from goalstate.bus.conformance import until
from goalstate.bus.mailbox import Mailbox


def test_items_of_a_foreign_thread_arrive_in_order_and_in_the_loops_thread() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(1 << 30)
        got: list[int] = []
        threads: set[int] = set()

        def take(number: int) -> None:
            got.append(number)
            threads.add(threading.get_ident())

        def produce() -> None:
            for number in range(20_000):
                mailbox.put(take, number)

        producer = threading.Thread(target=produce)
        producer.start()
        await until("all items arrive", lambda: len(got) >= 20_000)
        producer.join()
        assert got == list(range(20_000))
        assert threads == {threading.get_ident()}

    asyncio.run(scenario())


def test_weighed_items_wait_for_room_and_closing_lets_go() -> None:
    async def scenario() -> None:
        mailbox = Mailbox(100)
        got: list[int] = []
        put: list[int] = []
        full = threading.Event()

        def produce() -> None:
            for number in range(50):
                mailbox.put_weighed(60, got.append, number)
                put.append(number)
                if len(put) % 50 == 2:
                    full.set()

        producer = threading.Thread(target=produce)
        producer.start()
        # The loop does not run here, so only what fits goes in: two items (they cross the bound).
        assert full.wait(30)
        assert (put, got) == ([0, 1], [])
        await until("the rest follows as room is made", lambda: len(got) >= 50)
        producer.join()
        assert got == list(range(50))

        full.clear()
        blocked = threading.Thread(target=produce)
        blocked.start()
        assert full.wait(30)
        assert len(put) == 52
        mailbox.close()
        blocked.join(30)
        assert not blocked.is_alive()

    asyncio.run(scenario())


def test_a_failing_item_is_reported_and_the_next_is_handled() -> None:
    async def scenario() -> None:
        reported: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        mailbox = Mailbox(100)
        got: list[str] = []

        def fail() -> None:
            raise ValueError("no")

        mailbox.put(fail)
        mailbox.put(got.append, "next")
        await until("the next item is handled", lambda: got == ["next"])
        assert [type(context["exception"]) for context in reported] == [ValueError]

    asyncio.run(scenario())


def test_putting_after_the_loop_is_gone_is_harmless() -> None:
    async def make() -> Mailbox:
        return Mailbox(100)

    mailbox = asyncio.run(make())
    mailbox.put(print)
    mailbox.put_weighed(1000, print)
    mailbox.put_weighed(1000, print)
