"""The primary is killed under load, and its synchronous standby promoted."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from deployment.load import load
from deployment.nodes import Ground, Node, eventually, url_of
from support import selecting, silence, spec

from solti_store import FeedExpired, LeaseLost, Outcome, TaskPhase, TaskQuery, TaskStore
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.deployment


def test_what_was_acknowledged_outlives_the_primary_and_workers_go_on(
    ground: Ground, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    primary, standby = Node(ground, "primary"), Node(ground, "standby", synchronous_standby_names="")
    primary.create()
    primary.start()
    upgrade(primary.url)
    standby.clone(primary)
    standby.start()
    with primary.connect() as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        connection.execute("SELECT pg_reload_conf()")
    eventually(
        lambda: primary.ask("SELECT sync_state = 'sync' FROM pg_stat_replication"), "a sync standby", primary.log
    )

    url = url_of(standby, primary)
    elsewhere = selecting(host="elsewhere")
    with TaskStore.open(url) as store, load(url, tmp_path) as running:
        # An attempt from before, whose worker will be silent meanwhile; and one whose worker will not.
        silent = store.register("silent", labels={"host": "elsewhere"}, lease=timedelta(minutes=10))
        store.create_many([(name, spec(name, runner_selector=elsewhere)) for name in ("taken", "kept")])
        held = {str(claim.task_id): claim for claim in store.claim(silent, limit=1)}
        patient = store.register("patient", labels={"host": "elsewhere"}, lease=timedelta(minutes=10))
        held |= {str(claim.task_id): claim for claim in store.claim(patient, limit=1)}
        token = store.list(TaskQuery(with_token=True)).token
        assert token is not None
        running.flows(0)

        primary.kill()
        standby.promote()
        running.flows(time.monotonic())
        pause = running.longest_pause(0)

        # Silent for longer than its lease, its attempt is given to another; what it reports then is refused.
        silence(standby.url, silent)
        eventually(lambda: store.get("taken").phase is not TaskPhase.RUNNING or store.reap() or None, "the reaping")
        with pytest.raises(LeaseLost):
            store.finish(held["taken"], Outcome.succeeded(0))
        # Who held on to its lease, reports as if nothing had been.
        store.finish(held["kept"], Outcome.succeeded(0))
        assert store.get("kept").phase is TaskPhase.SUCCEEDED

        # The feed says that it cannot go on, and does from a new page.
        with pytest.raises(FeedExpired):
            store.changes(token)
        again = store.list(TaskQuery(with_token=True)).token
        assert again is not None
        assert next(iter(store.watch(TaskQuery(), since=again))).token

        running.stop_creating()
        count = running.check_all_done(store)
        unknown = sum(one.answer != "ok" for one in running.answers())
    tell(
        f"no creation was acknowledged for {pause:.2f} s around the kill -9; {count} were in all, none is lost,"
        f" {unknown} were of unknown outcome"
    )
