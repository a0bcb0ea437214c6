"""A page, and the changes after it, make the tasks as they are in the end: under load, with and without a selector."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

import pytest
from support import spec

from solti_store import ChangeKind, NotFound, Outcome, Selector, Task, TaskPhase, TaskQuery, TaskStore
from solti_store.model import Labels

ROUNDS = 60
WRITERS = 4


def write(url: str, writer: int) -> None:
    chance = random.Random(writer)
    with TaskStore.open(url) as store:
        agent = store.register(f"w-{writer}")
        for number in range(ROUNDS):
            match chance.randrange(6):
                case 0 | 1:
                    name = f"{writer}-{number}"
                    store.create(name, spec(name).replace(labels=Labels({"env": chance.choice(["a", "b"])})))
                case 2:
                    for claim in store.claim(agent, limit=3):
                        store.finish_many([(claim, Outcome.succeeded(1))])
                case _:
                    tasks = list(store.list(TaskQuery(limit=30, descending=True)))
                    if tasks:
                        change(store, chance.choice(tasks), chance)


def change(store: TaskStore, task: Task, chance: random.Random) -> None:
    """Whatever others do to it meanwhile."""
    name = task.metadata.id
    with suppress(NotFound):
        match chance.randrange(4):
            case 0:
                store.delete(name)
            case 1:
                store.cancel(name)
            case _:
                labels = Labels({"env": chance.choice(["a", "b"]), "n": str(chance.random())})
                store.update(name, lambda old: old.replace(labels=labels))


@pytest.mark.parametrize(
    "query",
    [
        TaskQuery(),
        TaskQuery(selector=Selector.parse("env=a")),
        TaskQuery(selector=Selector.parse("env!=a")),
        TaskQuery(phases=frozenset({TaskPhase.PENDING})),
        TaskQuery(selector=Selector.parse("env=a"), phases=frozenset({TaskPhase.SUCCEEDED, TaskPhase.RUNNING})),
    ],
    ids=["all", "selector", "negative", "phase", "both"],
)
def test_a_page_and_what_follows_make_the_end(database_url: str, query: TaskQuery) -> None:
    started = threading.Barrier(WRITERS + 1)

    def writing(writer: int) -> None:
        started.wait()
        write(database_url, writer)

    with TaskStore.open(database_url) as store, ThreadPoolExecutor(WRITERS) as there:
        for number in range(10):
            store.create(f"{number}", spec(f"{number}").replace(labels=Labels({"env": "a" if number % 2 else "b"})))
        writers = [there.submit(writing, number) for number in range(WRITERS)]
        started.wait()
        first = store.list(query.replace(with_token=True, limit=1000))
        assert first.token is not None
        assert first.next_cursor is None
        versions = {task.metadata.id: task.metadata.resource_version for task in first}
        token, over = first.token, False
        while True:
            over = over or all(one.done() for one in writers)
            found = store.changes(token, query, limit=50)
            for one in found.changes:
                known = versions.get(one.task_id)
                # What the page had already is not said again.
                assert (one.kind is ChangeKind.ADDED) == (known is None)
                if one.kind is ChangeKind.DELETED:
                    del versions[one.task_id]
                else:
                    assert known is None or one.resource_version > known or one.type == "refused"
                    versions[one.task_id] = one.resource_version
            token = found.token
            if over and found.is_all and not found.changes:
                break
        for writer in writers:
            writer.result()
        everything = chain.from_iterable(store.pages(query.replace(limit=1000)))
        assert versions == {task.metadata.id: task.metadata.resource_version for task in everything}
