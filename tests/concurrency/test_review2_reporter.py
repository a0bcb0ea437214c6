"""A worker's reports behind one that has to wait."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support import queued
from test_open_transactions import still_open

from solti_store import AsyncTaskStore, Outcome, TaskPhase
from solti_store.worker.reporting import Reporter

if TYPE_CHECKING:
    from chaos.client import Client

OK = Outcome.succeeded(0)


@pytest.mark.xfail(strict=True, reason="one batch at a time, and the last transaction of each waits")
def test_what_ends_later_is_reported_though_one_report_has_to_wait(client: Client, ordered_url: str) -> None:
    client.store.create_many([("a", queued("a")), ("b", queued("b"))])
    claims = {one.task_id: one for one in client.store.claim(client.register(), limit=2)}

    async def report() -> TaskPhase:
        async with await AsyncTaskStore.open(ordered_url) as store:
            reporter = Reporter(store, patience_s=30, tell=lambda _: None, on_change=lambda: None)
            keeping = asyncio.create_task(reporter.keep())
            reporter.add(claims["a"], OK)
            await asyncio.sleep(0.5)
            reporter.add(claims["b"], OK)
            await asyncio.sleep(2)
            phase = (await store.get("b")).status.phase
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            return phase

    with still_open(client, ordered_url, lambda other: other.create("joins", queued("a"))):
        assert asyncio.run(report()) is TaskPhase.SUCCEEDED
