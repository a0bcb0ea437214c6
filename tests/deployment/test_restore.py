"""The restore drills of docs/production.md, done."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from deployment.nodes import USER, Ground, Node, eventually
from support import silence, spec

from solti_store import AgentLost, FeedExpired, LeaseLost, NotFound, Outcome, Selector, TaskPhase, TaskQuery, TaskStore
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from solti_store import Agent
    from solti_store.ops.rows import Claim

pytestmark = pytest.mark.deployment


class Before:
    """What there was when the backup was made, and what came after it."""

    def __init__(self, store: TaskStore) -> None:
        self.store = store
        store.create_many([(f"t{number}", spec(f"s{number}", labels={"part": "a"})) for number in range(50)])
        store.index_labels()
        self.agent = store.register("worker", lease=timedelta(minutes=5))
        (self.claim,) = store.claim(self.agent, limit=1)
        token = store.list(TaskQuery(with_token=True)).token
        assert token is not None
        self.token = token

    def go_on(self) -> tuple[Agent, list[Claim]]:
        """What a restore takes back."""
        self.store.create("later", spec("later"))
        other = self.store.register("other", lease=timedelta(minutes=5))
        claims = list(self.store.claim(other, limit=10))
        self.store.finish(self.claim, Outcome.succeeded(0))
        assert len(claims) == 10
        return other, claims


def check_restored(url: str, before: Before, other: Agent, claims: list[Claim]) -> None:
    """It is as it was, and who knows more than that is told."""
    with TaskStore.open(url) as store:
        assert len(store.list(TaskQuery(limit=100))) == 50
        with pytest.raises(NotFound):
            store.get("later")
        # Its changes of then are not this database's changes.
        with pytest.raises(FeedExpired):
            store.changes(before.token)
        assert store.list(TaskQuery(with_token=True)).token
        # Workers from after the backup: neither they nor their attempts are known.
        with pytest.raises(AgentLost):
            store.heartbeat(other)
        for answer in store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims]):
            assert isinstance(answer, LeaseLost)
        # The attempt that ran at the time is taken from its worker, which has been silent, and may run again.
        assert store.get("t0").phase is TaskPhase.RUNNING
        silence(url, before.agent)
        assert [one.task_id for one in store.reap()] == ["t0"]
        with pytest.raises(LeaseLost):
            store.finish(before.claim, Outcome.succeeded(0))
        again = store.register("again", lease=timedelta(minutes=5))
        assert len(store.claim(again, limit=100)) == 49
        assert len(store.list(TaskQuery(selector=Selector.parse("part=a"), limit=100))) == 50


@pytest.fixture
def primary(ground: Ground) -> Node:
    archive = ground.mkdir("archive")
    made = Node(ground, "primary", archive_mode="on", archive_command=f'cp "%p" "{archive}/%f"')
    made.create()
    made.start()
    upgrade(made.url)
    return made


def test_a_dump_is_restored_into_a_new_database(ground: Ground, primary: Node) -> None:
    where = ["-h", "127.0.0.1", "-p", primary.port, "-U", USER]
    with TaskStore.open(primary.url) as store:
        before = Before(store)
        dump = ground.mkdir("dumps") / "dump"
        ground.run(ground.programs / "pg_dump", *where, "-Fc", "-f", dump, "postgres")
        other, claims = before.go_on()
    with primary.connect() as connection:
        connection.execute("CREATE DATABASE restored")
    ground.run(ground.programs / "pg_restore", *where, "--exit-on-error", "-d", "restored", dump)
    check_restored(primary.url.replace("/postgres", "/restored"), before, other, claims)


def test_a_base_backup_is_brought_to_a_point_in_time(ground: Ground, primary: Node) -> None:
    restored = Node(
        ground,
        "restored",
        archive_mode="off",
        restore_command=f'cp "{ground.folder}/archive/%f" "%p"',
        recovery_target_name="before",
        recovery_target_action="promote",
    )
    restored.clone(primary)
    # Not to follow the primary, but to end at the point.
    (restored.data / "standby.signal").rename(restored.data / "recovery.signal")
    (restored.data / "postgresql.auto.conf").write_text("")
    with TaskStore.open(primary.url) as store:
        before = Before(store)
        primary.ask("SELECT pg_create_restore_point('before')")
        other, claims = before.go_on()
        primary.ask("SELECT pg_switch_wal()")
    primary.stop()  # archives what is left
    restored.start()
    eventually(lambda: not restored.ask("SELECT pg_is_in_recovery()"), "the end of recovery", restored.log)
    check_restored(restored.url, before, other, claims)


def test_an_upgrade_to_another_major_keeps_what_runs_and_the_feed(ground: Ground) -> None:
    older = ground.programs.parents[1] / "pginstall" / "bin"
    old = Node(ground, "old", programs=older)
    new = Node(ground, "new")
    for node in (old, new):
        node.create()
    old.start()
    assert (old.ask("SHOW server_version_num") < "170000") is True
    upgrade(old.url)
    with TaskStore.open(old.url) as store:
        before = Before(store)
        patient = store.register("patient", lease=timedelta(minutes=5))
        claims = list(store.claim(patient, limit=5))
    old.stop()
    folder = ground.mkdir("upgrade")
    where = ["-b", old.programs, "-B", new.programs, "-d", old.data, "-D", new.data, "-U", USER, "-s", folder]
    ground.run(new.programs / "pg_upgrade", *where, "--no-sync", cwd=folder)
    new.start()
    assert (new.ask("SHOW server_version_num") > "180000") is True
    with TaskStore.open(new.url) as store:
        # The transactions' numbers go on where they were: a token does, too, and so do attempts.
        seen = store.changes(before.token)
        assert [change.type.value for change in seen.changes] == ["started"] * 5
        store.heartbeat(patient)
        assert store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims]) == [None] * 5
        assert len(store.list(TaskQuery(selector=Selector.parse("part=a"), limit=100))) == 50
        # A new epoch, as the page has it, ends the old one's tokens.
        new.ask("UPDATE solti.feed SET epoch = gen_random_uuid(), written_by = pg_current_xact_id() RETURNING true")
        with pytest.raises(FeedExpired):
            store.changes(before.token)
