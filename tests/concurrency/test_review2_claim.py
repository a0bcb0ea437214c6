"""A claim whose first statement started attempts, and whose second fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from sqlalchemy import create_engine, text
from support import connect, queued, selecting, spec

from solti_store import Outcome, OutcomeUnknown
from solti_store.errors import TransactionAborted
from solti_store.sql.agents import SELECT_NEW_ROUTES

if TYPE_CHECKING:
    from chaos.client import Client


def test_a_claim_that_cannot_judge_a_new_route_does_not_say_that_nothing_was_started(client: Client) -> None:
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
            with connect(store._owned.url.render_as_string(hide_password=False)) as conn:
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


def test_a_claim_in_a_transaction_that_broke_says_so(client: Client, ordered_url: str) -> None:
    store = client.store
    store.create("bad", queued("s"))
    store.create("next", queued("s"))
    store.create("good", queued("t"))
    client.conn.execute("UPDATE solti.tasks SET spec = spec || '{\"runnerSelector\": 7}' WHERE id = 'bad'")
    agent = store.register("w")
    engine = create_engine(ordered_url)
    with engine.connect() as stranger, engine.connect() as mine:
        store.using(stranger).cancel("next")
        mine.execute(text("SET lock_timeout = '200ms'"))
        bound = store.using(mine)
        # Nothing that this started will ever be committed.
        with pytest.raises(TransactionAborted):
            bound.claim(agent, limit=5)
    engine.dispose()


@pytest.mark.xfail(strict=True, reason="what cannot be read is failed first, and waits for who is next")
def test_a_claim_does_not_wait_for_who_comes_after_a_task_that_cannot_be_read(client: Client, ordered_url: str) -> None:
    store = client.store
    store.create("bad", queued("s"))
    store.create("next", queued("s"))
    store.create("good", queued("t"))
    client.conn.execute("UPDATE solti.tasks SET spec = spec || '{\"runnerSelector\": 7}' WHERE id = 'bad'")
    agent = store.register("w")
    engine = create_engine(ordered_url)
    with ThreadPoolExecutor(1) as there, engine.connect() as stranger:
        store.using(stranger).cancel("next")
        claiming = there.submit(store.claim, agent, limit=5)
        try:
            assert [one.task_id for one in claiming.result(timeout=3)] == ["good"]
        finally:
            stranger.commit()
    engine.dispose()


@pytest.mark.xfail(strict=True, reason="256 that ended are kept beside the one that runs")
def test_there_are_no_more_runs_than_are_kept_while_one_more_runs(client: Client) -> None:
    store = client.store
    store.create("a", spec("a"))
    for _ in range(256):
        store.finish(store.start("a"), Outcome.succeeded(0))
    store.start("a")
    assert len(store.runs("a")) == 256
