"""A streaming replica: reads of all kinds, and clear errors for the rest."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cli_run import run_cli
from deployment.nodes import Ground, Node, eventually
from support import spec

from solti_store import (
    FeedUnavailable,
    Outcome,
    RetryPolicy,
    Selector,
    StoreUnavailable,
    TaskQuery,
    TaskStore,
)
from solti_store.migrate import upgrade

pytestmark = pytest.mark.deployment

TASKS = 300


def test_a_replica_reads_everything_and_refuses_the_rest(ground: Ground) -> None:
    primary, replica = Node(ground, "primary"), Node(ground, "replica")
    primary.create()
    primary.start()
    upgrade(primary.url)
    replica.clone(primary)
    replica.start()

    with TaskStore.open(primary.url) as writer, TaskStore.open(replica.url, retry=RetryPolicy(attempts=2)) as reader:
        writer.create_many(
            [(f"t{number}", spec(f"s{number}", labels={"part": f"p{number % 3}"})) for number in range(TASKS)]
        )
        agent = writer.register("worker", lease=timedelta(minutes=5))
        (claim,) = writer.claim(agent, limit=1)
        token = writer.list(TaskQuery(with_token=True)).token
        assert token is not None
        eventually(lambda: replica.follows(primary), "replay", replica.log)

        # Reads: one task, its runs and reasons, pages, by labels with and without the index, agents.
        assert reader.get("t7") == writer.get("t7")
        assert not reader.runs("t7")
        assert reader.why("t7") == writer.why("t7")
        query = TaskQuery(selector=Selector.parse("part=p1"), limit=1000)
        assert [task.id for task in reader.list(query)] == [task.id for task in writer.list(query)]
        writer.index_labels()
        eventually(lambda: replica.follows(primary), "replay", replica.log)
        assert len(reader.list(query)) == TASKS / 3
        assert [one.id for one in reader.agents()] == ["worker"]

        # Writes: a typed error each, and nothing changes.
        for write in (
            lambda: reader.create("new", spec("new")),
            lambda: reader.update("t7", lambda old: old.replace(timeout=1)),
            lambda: reader.cancel("t7"),
            lambda: reader.delete("t7"),
            lambda: reader.register("other"),
            lambda: reader.claim(agent),
            lambda: reader.finish(claim, Outcome.succeeded(0)),
            lambda: reader.heartbeat(agent),
            reader.index_labels,
        ):
            with pytest.raises(StoreUnavailable, match="read-only, as a replica is"):
                write()

        # The feed: nothing that could miss a change.
        with pytest.raises(FeedUnavailable, match="primary"):
            reader.list(TaskQuery(with_token=True))
        with pytest.raises(FeedUnavailable, match="primary"):
            reader.changes(token)
        with pytest.raises(FeedUnavailable, match="primary"):
            next(iter(reader.watch(TaskQuery())))

    done = run_cli("report", "agents", "-o", "json", url=replica.url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["isReplica"], len(found["items"])) == (True, 1)
    assert "from a replica: as of 2" in done.stderr
    assert "behind" in done.stderr
    shown = run_cli("watch", url=replica.url)
    assert (shown.returncode, shown.stdout) != (0, "")
    assert "primary" in shown.stderr
