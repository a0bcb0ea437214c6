"""A listing of several small pages, whose first has the token, and what follows: they make the end all the same."""

# ruff: noqa: C901 - one story, told in order
from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

import pytest
from sqlalchemy import create_engine, text
from support import spec

from solti_store import NotFound, Outcome, Selector, SoltiStoreError, TaskPhase, TaskQuery, TaskStore
from solti_store.model import Labels, TaskOrder
from solti_store.sql.driver import is_autocommit

WRITERS = 4


def write(url: str, writer: int, over: threading.Event) -> None:
    chance = random.Random(writer)
    with TaskStore.open(url) as store:
        agent = store.register(f"w-{writer}")
        for number in range(10**6):
            if over.is_set():
                return
            with suppress(NotFound, SoltiStoreError):
                match chance.randrange(6):
                    case 0:
                        store.create(f"{writer}-{number}", spec().replace(labels=Labels({"env": chance.choice("ab")})))
                    case 1:
                        for claim in store.claim(agent, limit=3):
                            store.finish_many([(claim, Outcome.succeeded(1))])
                    case 2:
                        store.delete(f"{chance.randrange(WRITERS)}-{chance.randrange(max(number, 1))}")
                    case 3:
                        store.cancel(f"t-{chance.randrange(300)}")
                    case _:
                        store.update(
                            chance.choice([f"t-{chance.randrange(300)}", f"{writer}-{chance.randrange(number + 1)}"]),
                            lambda old: old.replace(
                                labels=Labels({"env": chance.choice("ab"), "n": str(chance.random())})
                            ),
                        )


@pytest.mark.parametrize("limit", [7, 1000])
def test_pages_and_what_follows_make_the_end(database_url: str, limit: int) -> None:
    queries = [
        TaskQuery(),
        TaskQuery(selector=Selector.parse("env=a")),
        TaskQuery(selector=Selector.parse("env notin (a)")),
        TaskQuery(phases=frozenset({TaskPhase.PENDING}), selector=Selector.parse("env=a")),
        TaskQuery(phases=frozenset({TaskPhase.CANCELED, TaskPhase.RUNNING})),
    ]
    over = threading.Event()
    with TaskStore.open(database_url) as store, ThreadPoolExecutor(WRITERS) as there:
        store.create_many([(f"t-{n}", spec(f"t-{n}").replace(labels=Labels({"env": "ab"[n % 2]}))) for n in range(300)])
        writers = [there.submit(write, database_url, number, over) for number in range(WRITERS)]
        kept = []
        try:
            for number in range(30):
                if number % 7 == 3:
                    store.index_labels()
                query = queries[number % len(queries)].replace(limit=limit, with_token=True)
                listed: dict[str, tuple[int, TaskPhase]] = {}
                token = ""
                order = TaskOrder.UPDATED if number % 3 == 2 else TaskOrder.CREATED
                for page in store.pages(query.replace(order_by=order)):
                    token = token or page.token or ""
                    listed |= {t.metadata.id: (t.metadata.resource_version, t.status.phase) for t in page}
                kept.append((queries[number % len(queries)], token, listed, limit == 1000 and len(listed) < 1000))
        finally:
            over.set()
        for writer in writers:
            writer.result()
        for query, start, listed, exact in kept:
            token = start
            while True:
                found = store.changes(token, query)
                for one in found.changes:
                    if exact:
                        assert (one.kind == "added") == (one.task_id not in listed)
                        assert (
                            one.kind != "modified"
                            or one.type == "refused"
                            or one.resource_version > listed[one.task_id][0]
                        )
                    if one.kind == "deleted":
                        listed.pop(one.task_id, None)
                    else:
                        listed[one.task_id] = (one.resource_version, one.phase)
                token = found.token
                if found.is_all:
                    break
            end = chain.from_iterable(store.pages(query.replace(limit=1000)))
            assert listed == {t.metadata.id: (t.metadata.resource_version, t.status.phase) for t in end}


def test_the_level_of_isolation_is_back_after_a_page_with_a_token(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, isolation_level="AUTOCOMMIT")
    store = TaskStore(engine)
    store.list(TaskQuery(with_token=True))
    with engine.connect() as conn:
        assert conn.execute(text("SHOW transaction_isolation")).scalar() == "read committed"
        assert is_autocommit(conn)
    engine.dispose()
