"""Two of everything at once: threads on a barrier, and real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from support import connect, lock_waits, retrying, selecting, silence, spec

from solti_store import (
    AgentLost,
    AlreadyExists,
    AlreadyRunning,
    LeaseLost,
    NotFound,
    Outcome,
    Task,
    TaskPhase,
    TaskQuery,
    TaskSpec,
    TaskStore,
    VersionConflict,
)
from solti_store.model import Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 8
ROUNDS = 20


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the calls in threads that start together; what each returned or raised."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - it is the result
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def kinds(results: Sequence[object]) -> Counter[str]:
    return Counter(type(result).__name__ for result in results)


def test_one_of_many_creators_of_an_id_wins(shared: TaskStore) -> None:
    for n in range(ROUNDS):
        results = at_once([partial(shared.create, f"t-{n}", spec())] * WIDTH)
        assert kinds(results) == {"Task": 1, "AlreadyExists": WIDTH - 1}


def test_batches_that_overlap_exclude_each_other_whole(shared: TaskStore) -> None:
    # In opposite orders, and all with new routes: whoever waits must not wait in a circle.
    for n in range(ROUNDS):
        batches = [
            [(f"t-{n}-{i}", spec(runner_selector=None, labels={"batch": str(b)})) for i in range(20)]
            for b in range(WIDTH)
        ]
        for b, batch in enumerate(batches):
            if b % 2:
                batch.reverse()
        results = at_once([partial(shared.create_many, batch) for batch in batches])
        assert kinds(results) == {"NewTasks": 1, "AlreadyExists": WIDTH - 1}


def test_one_of_many_replacers_at_a_version_wins(shared: TaskStore) -> None:
    shared.create("a", spec("a"))
    for version in range(1, ROUNDS + 1):
        results = at_once(
            [
                partial(shared.replace, "a", spec("a", labels={"by": f"{version}-{k}"}), expected_version=version)
                for k in range(WIDTH)
            ]
        )
        assert kinds(results) == {"Task": 1, "VersionConflict": WIDTH - 1}
    task = shared.get("a")
    assert (task.metadata.resource_version, task.metadata.generation) == (ROUNDS + 1, ROUNDS + 1)


def test_claims_at_once_never_share_a_task(shared: TaskStore) -> None:
    total = 400
    shared.create_many([(f"t-{n}", spec()) for n in range(total)])
    agents = [shared.register(f"w-{k}") for k in range(WIDTH)]

    def drain(k: int) -> list[str]:
        mine: list[str] = []
        while claims := shared.claim(agents[k], limit=7):
            mine += [claim.task_id for claim in claims]
            assert shared.finish_many([(claim, Outcome.succeeded()) for claim in claims]) == [None] * len(claims)
        return mine

    results = at_once([partial(drain, k) for k in range(WIDTH)])
    claimed = [task_id for result in results if isinstance(result, list) for task_id in result]
    # Another's lock may hide the last tasks from a claim, which then looks empty; what is left is still there.
    last = drain(0)
    assert Counter(claimed + last) == Counter({f"t-{n}": 1 for n in range(total)})
    assert shared.list(TaskQuery(phases=frozenset({TaskPhase.SUCCEEDED}), with_total=True)).total == total


def test_one_of_many_starters_wins(shared: TaskStore) -> None:
    shared.create("a", spec("a"))
    for n in range(1, ROUNDS + 1):
        results = at_once([lambda: shared.start("a")] * WIDTH)
        assert kinds(results) == {"Claim": 1, "AlreadyRunning": WIDTH - 1}
        (claim,) = [result for result in results if not isinstance(result, Exception)]
        assert claim.attempt == n
        shared.finish(claim, Outcome.failed("no"))


def test_of_two_outcomes_one_is_recorded_and_the_other_refused(shared: TaskStore) -> None:
    for n in range(ROUNDS):
        shared.create(f"t-{n}", retrying())
        claim = shared.start(f"t-{n}")
        outcomes = [Outcome.succeeded(0), Outcome.failed("no"), Outcome.timed_out(5), Outcome.canceled()]
        results = at_once([partial(shared.finish, claim, outcome) for outcome in outcomes])
        assert kinds(results) == {"NoneType": 1, "LeaseLost": 3}
        task, (run,) = shared.get(f"t-{n}"), shared.runs(f"t-{n}")
        assert run.phase is outcomes[results.index(None)].phase
        assert task.metadata.resource_version == 3


def test_batches_of_finishes_in_opposite_orders_do_not_deadlock(shared: TaskStore) -> None:
    for n in range(ROUNDS):
        shared.create_many([(f"t-{n}-{i}", spec()) for i in range(30)])
        claims = [shared.start(f"t-{n}-{i}") for i in range(30)]
        results = [(claim, Outcome.succeeded()) for claim in claims]
        answers = at_once([partial(shared.finish_many, batch) for batch in (results, results[::-1])])
        assert answers == [[None] * 30] * 2


def test_a_silent_agents_finish_races_its_reapers(database_url: str, shared: TaskStore) -> None:
    for n in range(ROUNDS):
        agent = shared.register("w")
        shared.create(f"t-{n}", spec())
        claim = shared.start(f"t-{n}", agent)
        silence(database_url, agent)
        finish, *reaps = at_once([partial(shared.finish, claim, Outcome.succeeded()), *[shared.reap] * 3])
        (run,) = shared.runs(f"t-{n}")
        reaped = [one for reap in reaps if isinstance(reap, list) for one in reap]
        assert not any(isinstance(reap, Exception) for reap in reaps)
        if finish is None:
            assert (run.phase, reaped) == (TaskPhase.SUCCEEDED, [])
        else:
            assert isinstance(finish, LeaseLost)
            assert (run.phase, [one.task_id for one in reaped]) == (TaskPhase.FAILED, [f"t-{n}"])
        shared.reap()


def test_no_attempt_is_handed_to_an_agent_that_is_being_closed(shared: TaskStore) -> None:
    for n in range(ROUNDS):
        agent = shared.register("w")
        shared.create(f"t-{n}", retrying())
        claimed, closed = at_once([partial(shared.claim, agent), partial(shared.sign_off, agent)])
        task = shared.get(f"t-{n}")
        if isinstance(claimed, Exception):
            assert isinstance(claimed, AgentLost)
            assert (task.phase, closed) == (TaskPhase.PENDING, [])
        else:
            assert isinstance(closed, list)
            assert [one.task_id for one in closed] == [claim.task_id for claim in claimed]
            assert task.phase is TaskPhase.FAILED
        assert shared.held(agent) == []
        shared.delete(f"t-{n}")


def test_deletes_replaces_cancels_and_starts_of_one_task_end_in_typed_errors_only(shared: TaskStore) -> None:
    expected = (AlreadyExists, AlreadyRunning, NotFound, VersionConflict, LeaseLost)

    def life(k: int) -> list[Exception]:
        surprises: list[Exception] = []
        for n in range(60):
            calls: list[Callable[[], object]] = [
                lambda: shared.create("a", retrying("a")),
                partial(shared.update, "a", partial(TaskSpec.replace, labels={"n": f"{k}-{n}"})),
                lambda: shared.cancel("a"),
                lambda: shared.finish(shared.start("a"), Outcome.failed("no")),
                lambda: shared.delete("a"),
                lambda: shared.delete("a", expected_version=3),
                lambda: shared.runs("a"),
            ]
            try:
                calls[(n * 5 + k) % len(calls)]()
            except expected:
                pass
            except Exception as error:  # noqa: BLE001 - collected for the report
                surprises.append(error)
        return surprises

    results = at_once([partial(life, k) for k in range(WIDTH)])
    assert results == [[]] * WIDTH


def test_creators_of_a_new_route_wait_for_each_other_and_all_succeed(shared: TaskStore) -> None:
    for n in range(ROUNDS):
        selector = selecting(round=str(n))
        results = at_once([partial(shared.create, f"t-{n}-{k}", spec(runner_selector=selector)) for k in range(WIDTH)])
        assert kinds(results) == {"Task": WIDTH}


def test_a_worker_sees_routes_that_commit_late(database_url: str, shared: TaskStore) -> None:
    agent = shared.register("w", labels={"a": "1", "b": "1"})
    engine = create_engine(database_url)
    with engine.connect() as slow:
        shared.using(slow).create("late", spec("late", runner_selector=selecting(a="1")))
        shared.create("early", spec("early", runner_selector=selecting(b="1")))
        assert [claim.task_id for claim in shared.claim(agent)] == ["early"]
        slow.commit()
    assert [claim.task_id for claim in shared.claim(agent)] == ["late"]
    engine.dispose()


UPDATER = """
import sys
from solti_store import TaskStore
url, me, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with TaskStore.open(url) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(rounds):
        store.update("a", lambda old: old.replace(labels={**old.labels, me: str(int(old.labels.get(me, "0")) + 1)}))
"""


def test_two_processes_of_1000_read_modify_writes_lose_none(database_url: str, shared: TaskStore) -> None:
    shared.create("a", spec("a"))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPDATER, database_url, name, "1000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    task = shared.get("a")
    assert task.spec.labels == {"one": "1000", "two": "1000"}
    assert (task.metadata.generation, task.metadata.resource_version) == (2001, 2001)


def test_every_version_step_has_one_event(database_url: str, shared: TaskStore) -> None:
    shared.create("a", retrying("a"))
    at_once(
        [
            lambda: shared.update("a", lambda old: old.replace(labels={"x": "1"})),
            lambda: shared.update("a", lambda old: old.replace(max_retries=9)),
            lambda: shared.finish(shared.start("a"), Outcome.failed("no")),
            lambda: shared.cancel("a"),
        ]
    )
    engine = create_engine(database_url)
    with engine.connect() as connection:
        versions = list(
            connection.scalars(text("SELECT resource_version FROM solti.task_events WHERE type <> 'refused'"))
        )
    engine.dispose()
    assert sorted(versions) == list(range(1, shared.get("a").metadata.resource_version + 1))


# --- what a statement that waited for a lock must not get wrong ----------------------------------


def blocked(url: str, count: int = 1) -> None:
    """Return once `count` backends of this database wait for a lock."""
    with connect(url) as conn:
        while lock_waits(conn) < count:
            pass


def test_an_attempt_that_waited_for_a_replace_starts_with_the_new_spec(database_url: str, shared: TaskStore) -> None:
    agent = shared.register("w")
    engine = create_engine(database_url)
    shared.create("a", spec("a"))
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        shared.using(other).replace("a", spec("a", timeout=Timeout(77)), expected_version=1)
        start = pool.submit(shared.start, "a", agent)
        blocked(database_url)
        other.commit()
        claim = start.result()
    assert claim.spec.timeout == 77
    assert claim.deadline - claim.started_at == timedelta(milliseconds=77)
    engine.dispose()


def test_a_finish_that_waited_for_a_replace_follows_the_new_policy(database_url: str, shared: TaskStore) -> None:
    engine = create_engine(database_url)
    shared.create("a", retrying("a"))
    claim = shared.start("a")
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        shared.using(other).replace("a", spec("a"), expected_version=2)
        finish = pool.submit(shared.finish, claim, Outcome.failed("no"))
        blocked(database_url)
        other.commit()
        finish.result()
    assert shared.claim(shared.register("w")) == []
    engine.dispose()


@pytest.mark.parametrize("limit", [1, 3])
def test_rows_that_others_have_locked_hide_no_others(database_url: str, shared: TaskStore, limit: int) -> None:
    agent = shared.register("w", labels={"a": "1"})
    for n in range(6):
        shared.create(f"t-{n}", spec(runner_selector=selecting(a="1") if n % 2 else None))
    engine = create_engine(database_url)
    with engine.connect() as other:
        held = [shared.using(other).start(f"t-{n}").task_id for n in range(3)]
        assert held == ["t-0", "t-1", "t-2"]
        assert len(shared.claim(agent, limit=limit)) == limit
    engine.dispose()


def test_a_worker_frozen_in_a_finish_holds_up_no_reaper(database_url: str, shared: TaskStore) -> None:
    silent = shared.register("silent")
    shared.create_many([("a", retrying()), ("b", retrying())])
    first, second = shared.claim(silent, limit=2)
    silence(database_url, silent)
    engine = create_engine(database_url)
    with engine.connect() as frozen:
        shared.using(frozen).finish(first, Outcome.succeeded())
        assert [one.task_id for one in shared.reap()] == ["b"]
    # Its transaction is gone, so the sweep takes what it held.
    assert [one.task_id for one in shared.reap()] == ["a"]
    with pytest.raises(LeaseLost):
        shared.finish(second, Outcome.succeeded())
    engine.dispose()


def test_an_attempt_that_a_snapshot_missed_is_swept_later(database_url: str, shared: TaskStore) -> None:
    agent = shared.register("w")
    shared.create("a", retrying("a"))
    engine = create_engine(database_url, isolation_level="REPEATABLE READ")
    with engine.connect() as old:
        shared.using(old).list()
        shared.claim(agent)
        assert shared.using(old).sign_off(agent) == []
        old.commit()
    assert [one.task_id for one in shared.reap()] == ["a"]
    assert shared.runs("a")[0].error == "agent w signed off"
    engine.dispose()


def test_nothing_based_on_an_old_incarnation_is_written_to_a_new_one(shared: TaskStore) -> None:
    old = shared.create("a", spec("a"))
    shared.delete("a")
    new = shared.create("a", spec("a", labels={"new": "yes"}))
    assert old.metadata.resource_version == new.metadata.resource_version
    for call in (
        lambda: shared.replace("a", spec("a", max_retries=5), expected_version=old),
        lambda: shared.replace("a", old.spec, expected_version=old),
        lambda: shared.delete("a", expected_version=old),
    ):
        with pytest.raises(VersionConflict, match="created again"):
            call()
    assert shared.get("a") == new
    assert shared.replace("a", spec("a", max_retries=5), expected_version=new).spec.max_retries == 5


@pytest.mark.parametrize("operation", ["cancel", "delete", "start", "replace"])
def test_a_task_that_was_recreated_while_waiting_is_acted_on(
    database_url: str, shared: TaskStore, operation: str
) -> None:
    calls: dict[str, Callable[[], object]] = {
        "cancel": lambda: shared.cancel("a").phase is TaskPhase.CANCELED,
        "delete": lambda: shared.delete("a"),
        "start": lambda: shared.start("a").attempt == 1,
        "replace": lambda: shared.replace("a", spec("a", max_retries=1), expected_version=1).spec.max_retries == 1,
    }
    shared.create("a", spec("a"))
    engine = create_engine(database_url)
    with engine.connect() as other, ThreadPoolExecutor(1) as pool:
        shared.using(other).delete("a")
        shared.using(other).create("a", spec("a"))
        waiting = pool.submit(calls[operation])
        blocked(database_url)
        other.commit()
        assert waiting.result() is True
    engine.dispose()


def test_a_timeout_that_was_changed_while_running_is_not_the_attempts(shared: TaskStore) -> None:
    shared.create("a", spec("a", timeout=Timeout(1)))
    shared.start("a")
    shared.replace("a", spec("a", timeout=Timeout(99_000)), expected_version=2)
    while not shared.reap(grace=timedelta(0)):
        pass  # a millisecond
    assert shared.runs("a")[0].error == "timed out after 1ms"


def test_pruners_share_the_work_and_leave_what_others_hold(shared: TaskStore, database_url: str) -> None:
    count = 200
    shared.create_many([(f"t-{n}", spec()) for n in range(count)])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE solti.task_status SET phase = 'canceled', due_at = NULL, updated_at = 'epoch'"))
    with engine.connect() as holder:
        held = text(
            "SELECT FROM solti.task_status JOIN solti.tasks USING (seq) WHERE id = 't-17' FOR UPDATE OF task_status"
        )
        holder.execute(held)
        results = at_once([partial(shared.prune, limit=40)] * WIDTH)
        assert sum(pruned.tasks for pruned in results) == count - 1
        assert [task.id for task in shared.list()] == ["t-17"]
    assert shared.prune().tasks == 1
    with engine.connect() as connection:
        events = connection.execute(text("SELECT count(*) FROM solti.task_events WHERE type = 'deleted'"))
        assert events.scalar_one() == count
    engine.dispose()


def test_a_task_that_is_changed_while_pruners_look_is_kept(shared: TaskStore, database_url: str) -> None:
    names = [f"t-{n}" for n in range(20)]
    age = text("UPDATE solti.task_status SET phase = 'canceled', due_at = NULL, updated_at = 'epoch'")
    engine = create_engine(database_url)

    def change(name: str) -> Task:
        return shared.update(name, lambda old: old.replace(timeout=Timeout(1)))

    for _ in range(ROUNDS):
        shared.create_many([(name, spec()) for name in names])
        with engine.begin() as connection:
            connection.execute(age)
        pruned, *changed = at_once([shared.prune, *(partial(change, name) for name in names[:3])])
        # Whoever was first: the change found it gone, or the pruner found it changed.
        assert set(kinds(changed)) <= {"Task", "NotFound"}
        assert pruned.tasks == len(names) - kinds(changed)["Task"]
        for task in shared.list():
            shared.delete(task.id)
    engine.dispose()
