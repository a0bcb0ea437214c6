"""Code on schemas that are not quite its own: before it, after it, and changed under it."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from cli_run import run_cli
from deployment.ahead import AFTER, NEXT, write
from sqlalchemy import Engine, create_engine, text
from support import BlockingStore, connect, spec

from solti_store import AsyncTaskStore, Outcome, SchemaMismatch, TaskStore
from solti_store.migrate import config, downgrade, upgrade
from solti_store.ops import schema
from solti_store.sql.revision import HEAD, OLDEST
from solti_store.sql.tables import SCHEMA
from solti_store.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write(tmp_path_factory.mktemp("ahead"))]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    yield made
    made.dispose()


def history(engine: Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        return [(name, oldest_code) for name, oldest_code, _ in schema.history(connection)]


def live(store: TaskStore) -> None:
    """A bit of everything that a worker and a creator do."""
    agent = store.register("w")
    for number in range(8):
        store.create(f"t-{number}", spec())
    store.create_many([(f"m-{number}", spec()) for number in range(3)])
    claims = store.claim(agent, limit=5)
    assert len(claims) == 5
    assert store.finish_many([(claim, Outcome.succeeded()) for claim in claims]) == [None] * 5
    store.heartbeat(agent)
    store.cancel("m-2")
    assert len(store.list()) == 11
    assert not store.changes(store.token()).changes
    store.why("m-2")
    store.reap()
    store.prune()
    store.index_labels()
    store.sign_off(agent)
    for task in store.list():
        store.delete(task.id)


# --- what the migrations declare ----------------------------------------------------------------


def gaps(migrations: Sequence[tuple[str, str | None, Any]]) -> list[str]:
    """What breaks the window: of each migration its name, the one before, and its module."""
    found = []
    oldest = ""
    for name, before, module in migrations:
        code = getattr(module, "oldest_code", None)
        if (
            not isinstance(code, str)
            or not re.fullmatch(r"solti_\d{4}", code)
            or not re.fullmatch(r"solti_\d{4}", name)
        ):
            found.append(f"{name} declares no oldest_code")
            continue
        if code < oldest:
            found.append(f"{name} takes code of {code}, which the migration before it does not")
        if code > (before or name) and not getattr(module, "breaks_window", ""):
            found.append(f"{name} takes no code of {before}, and says not why in breaks_window")
        oldest = code
    return found


def test_every_migration_serves_the_code_before_it() -> None:
    every = [*ScriptDirectory.from_config(config()).walk_revisions()][::-1]
    names = [one.revision for one in every]
    assert gaps([(one.revision, before, one.module) for before, one in zip([None, *names], every, strict=False)]) == []
    assert names == sorted(names)


class Declares:
    def __init__(self, oldest_code: str | None = None, breaks_window: str = "") -> None:
        self.oldest_code = oldest_code
        self.breaks_window = breaks_window


@pytest.mark.parametrize(
    ("third", "refused"),
    [
        (Declares("solti_0001"), False),
        (Declares("solti_0002"), False),
        (Declares("solti_0003"), True),
        (Declares("solti_0003", "nobody had the second"), False),
        (Declares(), True),
        (Declares("0002"), True),
        (Declares("solti_0000"), True),
    ],
)
def test_a_gap_is_refused(third: Declares, refused: bool) -> None:
    before: list[tuple[str, str | None, Any]] = [
        ("solti_0001", None, Declares("solti_0001")),
        ("solti_0002", "solti_0001", Declares("solti_0001")),
    ]
    assert bool(gaps([*before, ("solti_0003", "solti_0002", third)])) is refused


# --- what the database knows --------------------------------------------------------------------


def test_the_list_follows_every_way_the_schema_moves(engine: Engine, database_url: str, ahead: list[Path]) -> None:
    mine = [(OLDEST, "solti_0001"), (HEAD, "solti_0001")]
    assert history(engine) == mine
    upgrade(database_url, NEXT, versions=ahead)
    assert history(engine) == [*mine, (NEXT, HEAD)]
    upgrade(database_url, AFTER, versions=ahead)
    assert history(engine) == [*mine, (NEXT, HEAD), (AFTER, NEXT)]
    downgrade(database_url, HEAD, versions=ahead)
    assert history(engine) == mine
    downgrade(engine, OLDEST)
    assert history(engine) == mine[:1]
    with engine.connect() as connection:
        command.stamp(config(connection), HEAD)
    assert history(engine) == mine
    with engine.connect() as connection:
        command.stamp(config(connection), "base")
    assert history(engine) == []
    with engine.connect() as connection:
        command.stamp(config(connection), HEAD)
    assert history(engine) == mine
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
    assert history(engine) == []


def test_a_step_that_fails_is_not_in_the_list(engine: Engine, database_url: str, ahead: list[Path]) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {SCHEMA}.task_status ADD COLUMN next_at int"))
    with pytest.raises(Exception, match="next_at"):
        upgrade(database_url, AFTER, versions=ahead)
    assert history(engine)[-1] == (NEXT, HEAD)


def test_the_offline_script_goes_down_with_its_list(engine: Engine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "downgrade", f"{HEAD}:{OLDEST}", "--sql"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.autocommit = True
        driver.execute(done.stdout.replace("%%", "%"))
    assert history(engine) == [(OLDEST, "solti_0001")]


def test_to_open_a_store_takes_one_look(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    execute: Any = psycopg.Cursor.execute

    def noted(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(str(query))
        return execute(cursor, query, *arguments, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", noted)
    TaskStore.open(database_url).close()
    assert len([query for query in seen if SCHEMA in query]) == 1


# --- code on these schemas ----------------------------------------------------------------------


def opened(url: str, kind: str) -> TaskStore:
    return TaskStore.open(url) if kind == "sync" else BlockingStore(url)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_everything_but_reports_works_on_the_schema_before(database_url: str, kind: str) -> None:
    downgrade(database_url, OLDEST)
    store = opened(database_url, kind)
    live(store)
    store.close()


def test_a_worker_works_on_the_schema_before(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    downgrade(database_url, OLDEST)

    async def work() -> None:
        async with await AsyncTaskStore.open(database_url) as store, asyncio.timeout(60):
            worker = Worker(store, "w", lease=timedelta(seconds=2), poll=timedelta(seconds=0.02))
            running = asyncio.create_task(worker.run())
            while not any("could not roll up" in record.message for record in caplog.records):
                assert not running.done()
                await asyncio.sleep(0.01)
            await store.create("afterwards", spec())
            while not (await store.get("afterwards")).phase.is_terminal:
                assert not running.done()
                await asyncio.sleep(0.01)
            worker.drain()
            await running

    asyncio.run(work())


def test_a_report_on_the_schema_before_is_one_line_with_the_command(database_url: str) -> None:
    downgrade(database_url, OLDEST)
    for arguments in (["report", "slots"], ["db", "roll-up"]):
        done = run_cli(*arguments, url=database_url)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
        assert "solti-store db upgrade" in done.stderr


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_code_works_on_the_next_schema_and_is_refused_by_the_one_after(
    database_url: str, ahead: list[Path], kind: str
) -> None:
    before = opened(database_url, kind)
    live(before)
    upgrade(database_url, NEXT, versions=ahead)
    live(before)
    store = opened(database_url, kind)
    live(store)
    # Old code that starts again brings its migrations along; there is nothing for them to do.
    upgrade(database_url)
    agent = store.register("w")
    store.create("x", spec())
    upgrade(database_url, AFTER, versions=ahead)
    in_vain: list[Callable[[], object]] = [
        lambda: opened(database_url, kind),
        lambda: upgrade(database_url),
        # Under a store that is open.
        lambda: store.create("y", spec()),
        lambda: before.why("x"),
        lambda: before.claim(agent),
        before.list,
        lambda: before.register("v"),
        lambda: before.cancel("x"),
        lambda: before.start("x"),
    ]
    for use in in_vain:
        with pytest.raises(SchemaMismatch, match=f"solti-store db downgrade {NEXT} -y") as refusal:
            use()
        assert refusal.value.revision == AFTER
    downgrade(database_url, NEXT, versions=ahead)
    assert before.delete("x")
    live(before)
    for one in (before, store):
        one.close()


class Retypes:
    """Operations whose statements every connection of a pool has prepared, and a column of theirs that changes type."""

    def __init__(self, url: str, *, size: int) -> None:
        # A view that reads the column keeps its type; without the reports nothing does.
        downgrade(url, OLDEST)
        self.url = url
        self.size = size
        self.store = TaskStore.open(url, pool_size=size, max_overflow=0)
        self.store.create("t", spec())

    def at_once(self, use: Callable[[], object]) -> None:
        """Let each connection of the pool be used, by a thread of its own."""
        together = Barrier(self.size)

        def one() -> None:
            together.wait(60)
            use()

        with ThreadPoolExecutor(self.size) as pool:
            for done in [pool.submit(one) for _ in range(self.size)]:
                done.result()

    def retype(self, kind: str) -> None:
        with connect(self.url) as connection:
            connection.execute(f"ALTER TABLE {SCHEMA}.tasks ALTER COLUMN generation TYPE {kind}".encode())


@pytest.mark.parametrize("size", [1, 12])
def test_a_column_that_changes_its_type_costs_no_operation(database_url: str, size: int) -> None:
    """Else: cached plan must not change result type, on each connection that has prepared the statement."""
    scene = Retypes(database_url, size=size)

    def read() -> None:
        scene.store.get("t")

    def write() -> None:
        scene.store.cancel("t")

    numbers = itertools.count()

    def create() -> None:
        scene.store.create(f"n-{next(numbers)}", spec())

    for use in (read, write, create):
        scene.retype("bigint")
        for _ in range(10):
            scene.at_once(use)
        scene.retype("integer")
        scene.at_once(use)
        scene.retype("bigint")
        use()
    scene.store.close()
