"""Listings while others write: what stands is seen once, whoever moves beside it and however the index lags."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from support import queued, spec

from solti_store import Invalid, Outcome, TaskPage, TaskPhase, TaskQuery, TaskStore
from solti_store.model import Labels, TaskOrder
from solti_store.ops import label_index, listing
from solti_store.ops.label_index import SEGMENTS_MAX
from solti_store.sql import label_index as sql
from solti_store.sql import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

WRITERS = 8
STABLE = 400
PASSES = 4


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    yield made
    made.dispose()


def labelled(slot: str | None = None, **labels: str) -> Any:
    return queued(slot, labels=Labels(labels)) if slot else spec(labels=Labels(labels))


def ids(store: TaskStore, **query: Any) -> list[str]:
    return [task.id for task in store.list(TaskQuery(**query))]


def step(connection: Connection) -> bool:
    """A step of the index in the transaction of a connection."""
    return label_index.step(connection, eager=True)


# --- paging beside writers ----------------------------------------------------------------------


def stand(store: TaskStore, engine: Engine, slot: str | None = None) -> list[str]:
    """Tasks that nobody will touch, spread over several segments, with room for others between them."""
    made = []
    for part in range(8):
        batch = [(f"stable-{part}-{n}", labelled(slot, keep="yes", n=str(n))) for n in range(STABLE // 8)]
        store.create_many(
            [item for n, one in enumerate(batch) for item in (one, (f"moving-{part}-{n}", labelled(slot)))]
        )
        made += [task_id for task_id, _ in batch]
        with engine.begin() as connection:
            connection.execute(text("SELECT setval('solti.tasks_seq_seq', nextval('solti.tasks_seq_seq') + 3000)"))
    return made


class Turns:
    """Lets the writers go on a little with each page: let loose, they would make tasks faster than a reader reads."""

    def __init__(self) -> None:
        self._turns = threading.Semaphore(0)
        self._over = False

    def give(self) -> None:
        self._turns.release(WRITERS)

    def end(self) -> None:
        self._over = True
        self._turns.release(2 * WRITERS)

    def take(self) -> bool:
        self._turns.acquire()
        return not self._over


def write(store: TaskStore, writer: int, turns: Turns, slot: str | None = None) -> int:
    """Create, relabel, cancel, run and delete tasks that are nobody else's; how often."""
    dice = random.Random(writer)
    mine = [f"moving-{part}-{n}" for part in range(8) for n in range(STABLE // 8) if n % WRITERS == writer]
    for number in itertools.count():
        if not turns.take():
            return number
        new = [f"new-{writer}-{number}-{n}" for n in range(2)]
        store.create_many([(task_id, labelled(slot, keep=dice.choice(["yes", "no"]))) for task_id in new])
        mine += new
        store.update(dice.choice(mine), lambda old: old.replace(labels=Labels({"keep": dice.choice(["yes", "no"])})))
        store.cancel(mine[-1])
        for _ in range(2):
            store.delete(mine.pop(dice.randrange(len(mine))))
    raise AssertionError


def there_and_back(store: TaskStore, turns: Turns, query: TaskQuery) -> Iterator[list[str]]:
    """What is listed from the first page to the last, then from there to the first again."""

    def read(query: TaskQuery) -> TaskPage:
        turns.give()
        return store.list(query)

    pages = [read(query)]
    while cursor := pages[-1].next_cursor:
        pages.append(read(query.replace(cursor=cursor)))
    yield [task.id for page in pages for task in page]
    pages = [pages[-1]]
    while cursor := pages[-1].prev_cursor:
        pages.append(read(query.replace(cursor=cursor)))
    yield [task.id for page in reversed(pages) for task in page]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"selector": "keep=yes"},
        {"selector": "keep notin (no)", "phases": {TaskPhase.PENDING}},
        {"phases": {TaskPhase.PENDING, TaskPhase.RUNNING}},
        {"slot": "slot"},
    ],
    ids=["all", "selector", "selector and phase", "phases", "slot"],
)
def test_what_stands_is_seen_once_in_order_there_and_back(
    shared: TaskStore, engine: Engine, filters: dict[str, Any]
) -> None:
    stable = stand(shared, engine, filters.get("slot"))
    wanted = set(stable)
    shared.index_labels()
    turns = Turns()

    def index() -> int:
        for number in itertools.count():
            if not turns.take():
                return number
            shared.index_labels()
        raise AssertionError

    with ThreadPoolExecutor(WRITERS + 1) as pool:
        writers = [pool.submit(write, shared, writer, turns, filters.get("slot")) for writer in range(WRITERS)]
        indexer = pool.submit(index)
        try:
            for number in range(PASSES):
                # By the last change only those that nobody changes keep their places: the same, in the same order.
                for order in TaskOrder:
                    query = TaskQuery(**filters, order_by=order, descending=number % 2 == 1, limit=37)
                    for listed in there_and_back(shared, turns, query):
                        assert [one for one in listed if one in wanted] == (
                            stable[::-1] if query.descending else stable
                        )
                        assert len(set(listed)) == len(listed) or order is TaskOrder.UPDATED
        finally:
            turns.end()
        assert all(writer.result() > PASSES for writer in writers)
        assert indexer.result() > PASSES


# --- the index, one hazard at a time -------------------------------------------------------------


def test_a_task_that_commits_after_the_index_went_past_it_is_found(shared: TaskStore, engine: Engine) -> None:
    shared.create("before", labelled(env="prod"))
    with engine.connect() as late:
        shared.using(late).create("late", labelled(env="prod"))
        shared.create("after", labelled(env="prod"))
        shared.index_labels()
        assert ids(shared, selector="env=prod") == ["before", "after"]
        late.commit()
    assert ids(shared, selector="env=prod") == ["before", "late", "after"]
    for _ in range(2):
        shared.index_labels()
        assert ids(shared, selector="env=prod") == ["before", "late", "after"]


def test_labels_that_change_after_the_index_went_past_them_are_found(shared: TaskStore, engine: Engine) -> None:
    shared.create("a", labelled(env="prod"))
    shared.index_labels()
    with engine.connect() as late:
        shared.using(late).update("a", lambda old: old.replace(labels=Labels({"env": "dev"})))
        shared.create("b", labelled(env="dev"))
        shared.index_labels()
        assert ids(shared, selector="env=prod") == ["a"]
        late.commit()
    for _ in range(2):
        assert ids(shared, selector="env=prod") == []
        assert ids(shared, selector="env=dev") == ["a", "b"]
        assert ids(shared, selector="env!=prod", descending=True) == ["b", "a"]
        shared.index_labels()


def test_a_transaction_that_stays_open_over_many_steps_is_not_forgotten(shared: TaskStore, engine: Engine) -> None:
    shared.create("t-0", labelled(env="prod"))  # makes the route, which one of the two would wait for
    with engine.connect() as first, engine.connect() as second:
        shared.using(first).create("first", labelled(env="prod"))
        shared.using(second).create("second", labelled(env="prod"))
        for n in range(1, 5):
            shared.create(f"t-{n}", labelled(env="prod"))
            shared.index_labels()
        second.commit()
        for n in range(5, 8):
            shared.create(f"t-{n}", labelled(env="prod"))
            shared.index_labels()
        first.commit()
    wanted = ["t-0", "first", "second", *(f"t-{n}" for n in range(1, 8))]
    for _ in range(2):
        assert ids(shared, selector="env=prod") == wanted
        shared.index_labels()


def test_ones_own_tasks_are_listed_before_they_are_committed(shared: TaskStore, engine: Engine) -> None:
    shared.create("old", labelled(env="prod"))
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        with engine.connect().execution_options(isolation_level=level) as connection:
            mine = shared.using(connection)
            mine.create("mine", labelled(env="prod"))
            shared.create(f"other {level}".replace(" ", "-"), labelled(env="dev"))
            shared.index_labels()
            assert ids(mine, selector="env=prod") == ["old", "mine"]
            connection.rollback()


def test_a_step_leaves_the_field_to_another_step(shared: TaskStore, engine: Engine) -> None:
    shared.create("a", labelled(env="prod"))
    with engine.connect() as one, engine.connect() as other:
        step(one)
        assert step(other) is False
        other.rollback()
        # Until it commits, nothing is known of what it did; after a rollback neither.
        assert ids(shared, selector="env=prod") == ["a"]
        one.rollback()
    assert ids(shared, selector="env=prod") == ["a"]


def test_a_step_that_commits_in_the_middle_of_a_listing_hides_nothing(
    shared: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.create_many([(f"t-{n}", labelled(env="prod")) for n in range(3)])
    asked = sql.POSTINGS.all
    steps = 0

    def after_a_step(connection: Connection, given: Any) -> Any:
        # What was not known when the listing began is known now.
        nonlocal steps
        shared.index_labels()
        steps += 1
        return asked(connection, given)

    monkeypatch.setattr(sql.POSTINGS, "all", after_a_step)
    assert ids(shared, selector="env=prod") == ["t-0", "t-1", "t-2"]
    assert steps


def test_a_writer_that_commits_within_a_step_is_still_not_known(
    shared: TaskStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.create("a", labelled(env="prod"))
    read, advance = sql.SEGMENT_LABELS.all, sql.ADVANCE.all
    labels = iter(["qa", "dev"])

    def change() -> None:
        now = next(labels)
        shared.update("a", lambda old: old.replace(labels=Labels({"env": now})))
        shared.create(f"with-{now}", labelled(env="prod"))

    def before_the_segment(connection: Connection, given: Any) -> Any:
        change()
        return read(connection, given)

    def before_the_end(connection: Connection, given: Any) -> Any:
        change()
        return advance(connection, given)

    monkeypatch.setattr(sql.SEGMENT_LABELS, "all", before_the_segment)
    monkeypatch.setattr(sql.ADVANCE, "all", before_the_end)
    with engine.begin() as connection:
        step(connection)
    monkeypatch.undo()
    for _ in range(2):
        assert ids(shared, selector="env=prod") == ["with-qa", "with-dev"]
        assert ids(shared, selector="env=dev") == ["a"]
        assert ids(shared, selector="env=qa") == []
        shared.index_labels()


def test_a_batch_larger_than_a_step_is_known_as_a_whole(shared: TaskStore, engine: Engine) -> None:
    count = sql.STEP_ROWS + 5000
    shared.create("first", labelled(env="prod"))
    shared.create_many([(f"t-{n}", labelled(n=str(n))) for n in range(count)])
    shared.create("last", labelled(env="prod"))
    while True:
        assert ids(shared, selector=f"n={count - 1}") == [f"t-{count - 1}"]
        assert ids(shared, selector="env=prod") == ["first", "last"]
        with engine.begin() as connection:
            more = step(connection)
        if not more:
            break
    assert ids(shared, selector="!n") == ["first", "last"]
    assert ids(shared, selector=f"n>{count - 3}") == [f"t-{count - 2}", f"t-{count - 1}"]


def test_a_restored_dump_is_indexed_anew(shared: TaskStore, engine: Engine) -> None:
    shared.create_many([(f"t-{n}", labelled(env="prod", n=str(n))) for n in range(50)])
    shared.index_labels()
    shared.create("unknown", labelled(env="prod"))
    with engine.begin() as connection:
        # As after pg_restore into a younger cluster: transactions that it never had, and rows that others wrote.
        connection.execute(text("UPDATE solti.tasks SET labels_xid = '900000000000'"))
        connection.execute(
            text(
                "UPDATE solti.label_index SET horizon = '900000000007', written_by = '900000000008',"
                " open_xids = '{900000000000}'"
            )
        )
        connection.execute(text("DELETE FROM solti.label_postings"))
    wanted = [*(f"t-{n}" for n in range(50)), "unknown"]
    with engine.connect() as late:
        shared.using(late).create("late", labelled(env="prod"))
        assert ids(shared, selector="env=prod") == wanted
        shared.index_labels()
        assert ids(shared, selector="env=prod") == wanted
        late.commit()
    for _ in range(2):
        assert ids(shared, selector="env=prod") == [*wanted, "late"]
        assert ids(shared, selector="n>48") == ["t-49"]
        shared.index_labels()
    with engine.begin() as connection:
        found = connection.execute(
            text(
                "SELECT bool_and(labels_xid < pg_current_xact_id()), (SELECT count(*) FROM solti.label_postings) > 0,"
                " (SELECT horizon < pg_current_xact_id() FROM solti.label_index) FROM solti.tasks"
            )
        ).one()
    assert tuple(found) == (True, True, True)


def test_segments_that_were_emptied_are_dropped_in_time(shared: TaskStore, engine: Engine) -> None:
    shared.create_many([(f"t-{n}", labelled(env="prod")) for n in range(100)])
    shared.index_labels()
    for n in range(100):
        shared.delete(f"t-{n}")
    shared.index_labels()  # nothing is unknown, but the segment is sparse
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM solti.label_postings")).scalar_one() == 0
        assert connection.execute(text("SELECT count(*) FROM solti.label_segments")).scalar_one() == 0
    assert ids(shared, selector="env=prod") == []


def test_the_outcome_of_work_is_listed_by_phase_and_label(shared: TaskStore) -> None:
    shared.create_many([(f"t-{n}", labelled(env="prod" if n % 2 else "dev")) for n in range(6)])
    shared.index_labels()
    for claim in shared.claim(shared.register("w"), limit=4):
        shared.finish(claim, Outcome.failed("no"))
    assert ids(shared, selector="env=prod", phases={TaskPhase.FAILED}) == ["t-1", "t-3"]
    assert ids(shared, selector="env=prod", phases={TaskPhase.FAILED}, order_by="updated", descending=True) == [
        "t-3",
        "t-1",
    ]


def test_a_restored_task_that_somebody_holds_is_known_later(shared: TaskStore, engine: Engine) -> None:
    # One in each of more segments than a step rebuilds.
    for n in range(SEGMENTS_MAX + 3):
        shared.create(f"t-{n}", labelled(env="prod"))
        with engine.begin() as connection:
            connection.execute(text("SELECT setval('solti.tasks_seq_seq', nextval('solti.tasks_seq_seq') + 4096)"))
    wanted = [f"t-{n}" for n in range(SEGMENTS_MAX + 3)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE solti.tasks SET labels_xid = CAST(CAST(900000000000 + seq AS text) AS xid8)"))
        connection.execute(text("UPDATE solti.label_index SET written_by = '1'"))
    with engine.connect() as holder:
        holder.execute(text("SELECT FROM solti.tasks FOR UPDATE"))
        shared.index_labels()
        assert ids(shared, selector="env=prod") == wanted
    shared.index_labels()
    assert ids(shared, selector="env=prod") == wanted
    with engine.begin() as connection:
        late = text("SELECT count(*) FROM solti.tasks, solti.label_index WHERE labels_xid >= horizon")
        assert connection.execute(late).scalar_one() == 0


def test_an_index_whose_row_was_removed_is_made_anew(shared: TaskStore, engine: Engine) -> None:
    shared.create("a", labelled(env="prod"))
    shared.index_labels()
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE solti.label_index"))
    shared.create("b", labelled(env="prod"))
    for _ in range(2):
        assert ids(shared, selector="env=prod") == ["a", "b"]
        shared.index_labels()
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM solti.label_index WHERE horizon > '0'")).scalar_one() == 1


def test_the_index_is_not_kept_inside_a_transaction_of_the_caller(shared: TaskStore, engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(Invalid, match="transactions of its own"):
        shared.using(connection).index_labels()


def test_what_changes_within_a_listing_does_not_come_up_behind_older_tasks(
    shared: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five are pending, the oldest of all, so that it takes several pieces to find them.
    shared.create_many([(f"t-{n}", labelled()) for n in range(200)])
    for n in range(5, 200):
        shared.cancel(f"t-{n}")
    walk = pages.walk("updated", descending=True)
    read = walk.all

    def then_change(connection: Connection, given: Any) -> Any:
        found = read(connection, given)
        monkeypatch.setattr(walk, "all", read_and_change_one)
        return found

    def read_and_change_one(connection: Connection, given: Any) -> Any:
        found = read(connection, given)
        shared.update("t-2", lambda old: old.replace(labels=Labels({"changed": "yes"})))
        monkeypatch.setattr(walk, "all", read)
        return found

    monkeypatch.setattr(walk, "all", then_change)
    # Without the stream of the phase, which would find them at once.
    monkeypatch.setattr(listing._Listing, "_by_creation", lambda *_, **__: [])
    query = TaskQuery(phases=frozenset({TaskPhase.PENDING}), order_by=TaskOrder.UPDATED, descending=True, limit=2)
    found = [[task.id for task in page] for page in shared.pages(query)]
    assert found == [["t-4", "t-3"], ["t-1", "t-0"]]


def test_a_large_gap_is_jumped_over(shared: TaskStore, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.create("first", labelled(env="prod"))
    shared.index_labels()
    with engine.begin() as connection:
        connection.execute(text("SELECT setval('solti.tasks_seq_seq', 1000000000)"))
    shared.create("last", labelled(env="prod"))
    asked = sql.POSTINGS.all
    windows = 0

    def counting(connection: Connection, given: Any) -> Any:
        nonlocal windows
        windows += 1
        return asked(connection, given)

    monkeypatch.setattr(sql.POSTINGS, "all", counting)
    for _ in range(2):
        assert ids(shared, selector="env=prod") == ["first", "last"]
        assert ids(shared, selector="env=prod", descending=True) == ["last", "first"]
        assert ids(shared, selector="env=qa") == []
        shared.index_labels()
    assert windows < 60


def test_no_look_at_the_index_reads_all_tasks(shared: TaskStore, engine: Engine) -> None:
    shared.create_many([(f"t-{n}", labelled()) for n in range(20_000)])
    with engine.begin() as connection:
        # As five loads at once would have left them.
        connection.execute(text("UPDATE solti.tasks SET labels_xid = CAST(CAST(3 + seq * 7 % 5 AS text) AS xid8)"))
        connection.execute(text("ANALYZE solti.tasks"))
        connection.execute(text("UPDATE solti.label_index SET horizon = '100', written_by = pg_current_xact_id()"))
    with engine.connect() as connection:
        for statement in (sql.FRESH, sql.UNKNOWN):
            plan = connection.exec_driver_sql(f"EXPLAIN {statement.text}").scalars().all()
            assert not [line for line in plan if "Seq Scan on tasks" in line]
