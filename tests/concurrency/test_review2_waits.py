"""Who waits for a stranger's open transaction all the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from support import lock_waits, queued, retrying
from test_open_transactions import still_open

from solti_store import LeaseLost, Outcome
from solti_store.sql.slots import SELECT_BLOCKED

if TYPE_CHECKING:
    from chaos.client import Client

OK = Outcome.succeeded(0)


@pytest.mark.xfail(strict=True, reason="who cannot be ended counts towards the limit")
def test_a_sweep_gets_past_those_whose_next_somebody_holds(client: Client, ordered_url: str) -> None:
    store = client.store
    store.create_many([(f"owner-{slot}", queued(slot)) for slot in "ab"])
    agent = client.register()
    assert len(store.claim(agent, limit=2)) == 2
    client.silence()
    store.create("next-a", queued("a"))
    with still_open(client, ordered_url, lambda other: other.cancel("next-a")):
        assert [one.task_id for _ in range(3) for one in store.reap(limit=1, grace=timedelta(0))] == ["owner-b"]


@pytest.mark.xfail(strict=True, reason="the last of the three transactions locks late ones as well")
def test_a_late_result_holds_nothing_while_another_is_waited_for(client: Client, ordered_url: str) -> None:
    """A batch with a late result and one that has to wait locks the late one's task, which somebody else runs."""
    store = client.store
    store.create("late", retrying("late"))
    store.create("held", queued("h"))
    old = client.register()
    claims = {one.task_id: one for one in store.claim(old, limit=2)}
    store.finish(claims["late"], Outcome.failed("no"))
    client.conn.execute("UPDATE solti.task_status SET due_at = now() WHERE due_at IS NOT NULL")
    (again,) = store.claim(client.register())
    assert again.task_id == "late"
    with (
        ThreadPoolExecutor(1) as there,
        ThreadPoolExecutor(1) as here,
        still_open(client, ordered_url, lambda other: other.create("joins", queued("h"))) as commit,
    ):
        first = there.submit(store.finish_many, [(claims["late"], OK), (claims["held"], OK)])
        while not lock_waits(client.conn):
            assert not first.done()
        second = here.submit(store.finish, again, OK)
        try:
            second.result(timeout=2)
        finally:
            commit()
        late, done = first.result()
        assert isinstance(late, LeaseLost)
        assert done is None


def test_a_sweep_does_not_wait_for_who_is_next_after_one_that_was_canceled_in_that_moment(
    client: Client, ordered_url: str
) -> None:
    """The head is canceled between the snapshot of SELECT_BLOCKED and its lock, and a stranger holds the one behind."""
    store = client.store
    store.create("owner", queued("a"))
    assert len(store.claim(client.register())) == 1
    client.silence()
    for name in ("first", "second"):
        store.create(name, queued("a"))
    held = SELECT_BLOCKED.text.replace(
        " LIMIT ", " LIMIT (SELECT CASE WHEN pg_advisory_xact_lock(4713)::text IS NOT NULL THEN 1 END) + -1 + ", 1
    )
    client.conn.execute("SELECT pg_advisory_lock(4713)")
    with (
        ThreadPoolExecutor(1) as there,
        still_open(client, ordered_url, lambda other: other.cancel("second")) as commit,
    ):
        with patch.object(SELECT_BLOCKED, "text", held):
            sweep = there.submit(store.reap, grace=timedelta(0))
            while not lock_waits(client.conn):
                assert not sweep.done()
        store.cancel("first")
        client.conn.execute("SELECT pg_advisory_unlock(4713)")
        try:
            sweep.result(timeout=2)
        finally:
            commit()
