"""Who gets a place, in which order, and that none is lost with somebody who stops waiting for it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING

from workers import HOURS_MS, PATIENCE_S

from solti_store.rules.outcome import Outcome
from solti_store.worker import Control
from solti_store.worker.places import Places

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def with_one_place(body: Callable[[Places], Awaitable[None]], *left: Future[None]) -> int:
    """Run it with one place; how often places said that one came back."""
    back: list[None] = []

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await body(Places(1, set(left), lambda: back.append(None)))

    asyncio.run(bounded())
    return len(back)


async def waiting(places: Places, control: Control) -> asyncio.Task[bool]:
    """Somebody who waits already."""
    task = asyncio.create_task(places.take(control, HOURS_MS))
    await asyncio.sleep(0)
    assert not task.done()
    return task


def test_places_go_round_in_the_order_of_asking() -> None:
    async def body(places: Places) -> None:
        assert await places.take(Control(), 0)
        tasks = [await waiting(places, Control()) for _ in range(3)]
        for number, task in enumerate(tasks):
            places.give_back(None)
            assert await task
            assert not any(later.done() for later in tasks[number + 1 :])

    with_one_place(body)


def test_who_is_asked_to_end_or_runs_out_of_time_gets_none_and_the_next_does() -> None:
    async def body(places: Places) -> None:
        assert await places.take(Control(), 0)
        control = Control()
        stopped, behind = await waiting(places, control), await waiting(places, Control())
        assert not await places.take(Control(), 0)
        control.stop(Outcome.canceled())
        assert not await stopped
        places.give_back(None)
        assert await behind

    with_one_place(body)


def test_a_place_that_comes_in_the_moment_of_cancellation_goes_to_the_next() -> None:
    async def body(places: Places) -> None:
        assert await places.take(Control(), 0)
        first, second = await waiting(places, Control()), await waiting(places, Control())
        places.give_back(None)
        first.cancel()
        assert await second
        assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is asyncio.CancelledError

    with_one_place(body)


def test_a_place_of_what_was_left_behind_comes_back_when_that_ends() -> None:
    left: Future[None] = Future()

    async def body(places: Places) -> None:
        assert places.usable == 0
        task = await waiting(places, Control())
        left.set_result(None)
        assert await task
        assert places.usable == 1

    assert with_one_place(body, left) == 1
