"""Everything through PgBouncer in transaction mode, with more clients than server connections."""

from __future__ import annotations

import random
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from cli_run import COMMAND, environment, run_cli
from deployment.nodes import Ground, Node
from deployment.pooler import PgBouncer, version
from support import BlockingStore, selecting, spec

from solti_store import Outcome, Selector, StoreUnavailable, TaskPhase, TaskQuery, TaskStore
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.deployment("pgbouncer")

CLIENTS = 12
SERVERS = 3
ROUNDS = 12


@pytest.fixture
def node(ground: Ground) -> Node:
    made = Node(ground, "primary")
    made.create()
    made.start()
    upgrade(made.url)
    return made


@pytest.fixture
def pooler(ground: Ground, node: Node) -> PgBouncer:
    return PgBouncer(ground, node, servers=SERVERS)


def lead_lives(store: TaskStore, me: int, done: Counter[str]) -> None:
    """Lives of tasks of one client's own: whatever another one's statement would answer is noticed."""
    rng = random.Random(me)
    mine = selecting(client=f"c{me}")
    agent = store.register(f"agent-{me}", labels={"client": f"c{me}"}, lease=timedelta(minutes=5))
    for number in range(ROUNDS):
        names = [f"t{me}-{number}-{part}" for part in range(rng.randint(1, 4))]
        wanted = [spec(name, runner_selector=mine, labels={"client": f"c{me}"}) for name in names]
        if rng.random() < 0.5:
            assert [task.id for task in store.create_many(zip(names, wanted, strict=True))] == names
        else:
            assert [store.create(*one).id for one in zip(names, wanted, strict=True)] == names
        done["created"] += len(names)
        for name in names:
            assert store.get(name).spec.slot == name
        chosen = rng.choice(names)
        assert store.update(chosen, lambda old: old.replace(timeout=7000 + me)).spec.timeout == 7000 + me
        done["specChanged"] += 1
        if len(names) > 1 and rng.random() < 0.5:
            gone = names.pop()
            assert store.cancel(gone).phase is TaskPhase.CANCELED
            done["finished"] += 1
        page = store.list(TaskQuery(selector=Selector.parse(f"client=c{me}"), phases=frozenset({TaskPhase.PENDING})))
        assert {task.id for task in page} == set(names)
        claims = store.claim(agent, limit=10)
        assert {claim.task_id for claim in claims} == set(names)
        done["started"] += len(claims)
        store.heartbeat(agent)
        answers = store.finish_many([(claim, Outcome(phase=TaskPhase.SUCCEEDED, exit_code=me)) for claim in claims])
        assert answers == [None] * len(claims)
        done["finished"] += len(claims)
        assert [run.exit_code for run in store.runs(names[0])] == [me]
        if rng.random() < 0.3:
            assert store.delete(names[0])
            done["deleted"] += 1
    store.sign_off(agent)


def watched(store: TaskStore, since: str, count: int) -> Iterator[Any]:
    for seen, change in enumerate(store.watch(TaskQuery(), since=since, poll=timedelta(milliseconds=20)), start=1):
        yield change
        if seen == count:
            return


def test_many_clients_live_on_few_connections_and_none_hears_what_another_asked(
    pooler: PgBouncer, node: Node, tell: Callable[[str], None]
) -> None:
    counts: list[Counter[str]] = [Counter() for _ in range(CLIENTS)]
    barrier = threading.Barrier(CLIENTS)
    with TaskStore.open(pooler.url) as store:
        token = store.list(TaskQuery(with_token=True)).token
        assert token is not None

        def client(me: int) -> None:
            # Half of them async, and two connections each, that a thread changes over as well.
            one = (
                TaskStore.open(pooler.url, pool_size=2)
                if me % 2
                else cast("TaskStore", BlockingStore(pooler.url, pool_size=2))
            )
            try:
                barrier.wait()
                lead_lives(one, me, counts[me])
            finally:
                one.close()

        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(client, range(CLIENTS)))
        done = sum(counts, Counter[str]())

        # Each write was made as often as somebody made it: none was lost, and none was another client's statement.
        assert Counter(change.type.value for change in watched(store, token, done.total())) == done
        assert node.ask("SELECT count(*) FROM solti.task_events") == done.total()
        assert node.ask("SELECT count(*) FROM solti.task_runs") <= done["started"]

    # Nothing of the clients' stays in the server's sessions.
    with pooler.connect() as first, pooler.connect() as second, pooler.connect() as third:
        inside = [one.cursor() for one in (first, second, third)]
        for cursor in inside:
            cursor.execute("BEGIN")  # each holds a session of its own
        sessions = set()
        for cursor in inside:
            cursor.execute(
                "SELECT pg_backend_pid(), current_setting('enable_seqscan'),"
                " (SELECT count(*) FROM pg_prepared_statements)"
            )
            ((pid, scans, prepared),) = cursor.fetchall()
            sessions.add(pid)
            assert (scans, prepared) == ("on", 0)
        assert len(sessions) == SERVERS
    tell(f"PgBouncer {version()}: {done.total()} changes by {CLIENTS} clients over {SERVERS} connections, all theirs")


def test_a_worker_runs_tasks_through_it(pooler: PgBouncer) -> None:
    with TaskStore.open(pooler.url) as store:
        store.create_many([(f"t{number}", spec(f"s{number}")) for number in range(20)])
        workers = [
            subprocess.Popen([*COMMAND, "work", "--until-idle", "-q"], env=environment(pooler.url)) for _ in range(2)
        ]
        assert [worker.wait(120) for worker in workers] == [0, 0]
        assert len(store.list(TaskQuery(phases=frozenset({TaskPhase.SUCCEEDED})))) == 20
    assert run_cli("report", "outcomes", "-o", "json", url=pooler.url).returncode == 0


def test_migrations_refuse_it_before_they_change_anything(pooler: PgBouncer, node: Node) -> None:
    with pytest.raises(StoreUnavailable, match="pooler"):
        upgrade(pooler.url)
    done = run_cli("db", "upgrade", url=pooler.url)
    assert done.returncode != 0
    assert "the URL of the server itself" in done.stderr
    assert node.ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def test_what_the_role_is_set_to_holds_in_every_session(ground: Ground, node: Node) -> None:
    # As docs/production.md has it: where the store cannot set its sessions up, the role does.
    with node.connect() as connection:
        for setting in ("enable_seqscan = off", "jit = off", "idle_in_transaction_session_timeout = '10s'"):
            connection.execute(f"ALTER ROLE solti IN DATABASE postgres SET {setting}".encode())
    pooler = PgBouncer(ground, node, servers=1)
    with TaskStore.open(pooler.url) as store, pooler.connect() as connection:
        store.create("a", spec("a"))
        shown = "SELECT current_setting('enable_seqscan'), current_setting('idle_in_transaction_session_timeout')"
        assert connection.execute(shown).fetchone() == ("off", "10s")
