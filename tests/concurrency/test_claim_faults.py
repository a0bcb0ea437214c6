"""A claim whose first statement started attempts, and whose second fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from sqlalchemy import create_engine, text
from support import connect, queued, selecting, spec, without_waiting

from solti_store import OutcomeUnknown
from solti_store.errors import TransactionAborted
from solti_store.sql.agents import SELECT_NEW_ROUTES
from solti_store.sql.closing import LOCK_FREE

if TYPE_CHECKING:
    from chaos.client import Client

    from solti_store import Agent, TaskStore


def test_a_claim_that_cannot_judge_a_new_route_does_not_say_that_nothing_was_started(
    client: Client, ordered_url: str
) -> None:
    store = client.store
    agent = store.register("w", labels={"zone": "b"})
    assert store.claim(agent) == []
    store.create("known", spec())
    store.create("routed", spec(runner_selector=selecting(zone="a")))
    assert [one.task_id for one in store.claim(agent)] == ["known"]
    # Now the agent knows both routes; a new task and a new route:
    store.create("second", spec())
    store.create("other", spec(runner_selector=selecting(zone="c")))
    # Whatever refuses a statement and leaves the connection: a timeout, pg_cancel_backend.
    refused = SELECT_NEW_ROUTES.text + " AND pg_sleep(5) IS NOT NULL"
    with patch.object(SELECT_NEW_ROUTES, "text", refused):

        def cancel() -> None:
            with connect(ordered_url) as conn:
                for _ in range(200):
                    if conn.execute(
                        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                    ).fetchall():
                        return
                    time.sleep(0.02)

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            got = store.claim(agent)
        except OutcomeUnknown:
            pass
        else:
            assert {one.task_id for one in got} == {"second"}
        thread.join()


def with_one_that_cannot_be_read(client: Client) -> tuple[TaskStore, Agent]:
    """Three due tasks; the spec of the first cannot be read, and the second waits for it."""
    store = client.store
    store.create("bad", queued("s"))
    store.create("next", queued("s"))
    store.create("good", queued("t"))
    client.conn.execute("UPDATE solti.tasks SET spec = spec || '{\"runnerSelector\": 7}' WHERE id = 'bad'")
    return store, store.register("w")


def test_a_claim_in_a_transaction_that_broke_says_so(client: Client, ordered_url: str) -> None:
    store, agent = with_one_that_cannot_be_read(client)
    engine = create_engine(ordered_url)
    slow = LOCK_FREE.text.replace(" ORDER BY", " AND pg_sleep(60) IS NOT NULL ORDER BY", 1)
    with engine.connect() as mine, patch.object(LOCK_FREE, "text", slow):
        mine.execute(text("SET statement_timeout = '300ms'"))
        # Nothing that this started will ever be committed.
        with pytest.raises(TransactionAborted):
            store.using(mine).claim(agent, limit=5)
    engine.dispose()


def test_a_claim_does_not_wait_for_who_comes_after_a_task_that_cannot_be_read(client: Client, ordered_url: str) -> None:
    store, agent = with_one_that_cannot_be_read(client)
    engine = create_engine(ordered_url)
    with ThreadPoolExecutor(1) as there, engine.connect() as stranger:
        store.using(stranger).cancel("next")
        claiming = there.submit(store.claim, agent, limit=5)
        try:
            assert [one.task_id for one in without_waiting(claiming, client.conn)] == ["good"]
        finally:
            stranger.commit()
    engine.dispose()
