"""Each operation of the store, beside bare psycopg that runs the same SQL."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.arena import arena, specs
from benchmarks.lab import Lab, Series, Work, say
from benchmarks.measure import compare
from benchmarks.replay import Script, record
from solti_store import Outcome
from solti_store.model import Slot
from solti_store.rules.routing import route_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.arena import Arena
    from benchmarks.measure import Case, Spent
    from solti_store import Claim, TaskSpec, TaskStore

__all__ = ["WORKS"]

BATCH = 100
SAME = "the same SQL"

_numbers = itertools.count()


def _new(count: int) -> list[tuple[str, TaskSpec]]:
    """Tasks whose ids and slots were never used, so that no block needs an empty table."""
    ids = [f"new-{next(_numbers)}" for _ in range(count)]
    return [(task_id, spec.replace(slot=Slot(task_id))) for task_id, spec in zip(ids, specs(count), strict=True)]


class Create:
    """One task, created and committed."""

    name = "create"
    baseline = SAME
    extra = "checks the id, writes the spec's JSON, derives the route, builds a Task"
    operations = 40
    blocks = 5
    tasks = 1

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        arena.fill(0)
        ((new, spec),) = _new(1)
        self._script = record(lambda: arena.store.create(new, spec))

    def ours(self, operations: int) -> Callable[[], object]:
        """`TaskStore.create`."""
        pairs = _new(operations)

        def run() -> None:
            for task_id, spec in pairs:
                self._arena.store.create(task_id, spec)

        return run

    def bare(self, operations: int) -> Callable[[], object]:
        """Its one statement."""
        return _each(
            self._arena,
            [
                self._script.with_parameters(task_id=task_id, task_spec=spec.to_json(), task_slot=task_id)
                for task_id, spec in _new(operations)
            ],
        )


def _each(arena: Arena, scripts: list[Script]) -> Callable[[], object]:
    def run() -> None:
        for script in scripts:
            script.run(arena.single, arena.several)

    return run


class CreateMany:
    """One batch."""

    baseline = "COPY of the same rows"
    extra = "checks ids, writes JSON, derives routes, skips taken ids, builds Tasks"
    operations = 1
    blocks = 1

    def __init__(self, arena: Arena, tasks: int) -> None:
        self._arena = arena
        self.tasks = tasks
        self.name = "create_many"
        arena.fill(1)  # so that the route is there

    def _empty(self) -> None:
        self._arena.fill(0)

    def ours(self, operations: int) -> Callable[[], object]:
        """`TaskStore.create_many`."""
        self._empty()
        batches = [_new(self.tasks) for _ in range(operations)]

        def run() -> None:
            for batch in batches:
                self._arena.store.create_many(batch)

        return run

    def bare(self, operations: int) -> Callable[[], object]:
        """COPY into `tasks`, `task_status` and `task_events`, with numbers from the sequence of `tasks`."""
        self._empty()
        batches = [
            [(task_id, spec.to_json(), route_of(spec).id) for task_id, spec in _new(self.tasks)]
            for _ in range(operations)
        ]

        def run() -> None:
            for batch in batches:
                _copy(self._arena, batch)

        return run


def _copy(arena: Arena, batch: list[tuple[str, str, Any]]) -> None:
    connection = arena.several
    found = connection.execute(
        "SELECT statement_timestamp(), array_agg(nextval(pg_get_serial_sequence('solti.tasks', 'seq')))"
        " FROM generate_series(1, %s)",
        [len(batch)],
    ).fetchone()
    now, seqs = found or (None, [])
    with connection.cursor().copy("COPY solti.tasks (seq, id, created_at, spec) FROM STDIN") as copy:
        for seq, (task_id, text, _) in zip(seqs, batch, strict=True):
            copy.write_row((seq, task_id, now, text))
    with connection.cursor().copy(
        "COPY solti.task_status (seq, updated_at, phase, due_at, slot, route) FROM STDIN"
    ) as copy:
        for seq, (task_id, _, route) in zip(seqs, batch, strict=True):
            copy.write_row((seq, now, "pending", now, task_id, route))
    with connection.cursor().copy(
        "COPY solti.task_events (at, seq, id, type, resource_version, phase, attempt) FROM STDIN"
    ) as copy:
        for seq, (task_id, _, _) in zip(seqs, batch, strict=True):
            copy.write_row((now, seq, task_id, "created", 1, "pending", 0))
    connection.commit()


class Get:
    """A point read."""

    name = "get"
    baseline = SAME
    extra = "parses and validates the Task"
    operations = 50
    blocks = 10
    tasks = 1

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._ids = arena.fill(1000)
        self._script = record(lambda: arena.store.get(self._ids[0]))

    def _some(self, operations: int) -> list[str]:
        return list(itertools.islice(itertools.cycle(self._ids), operations))

    def ours(self, operations: int) -> Callable[[], object]:
        """`TaskStore.get`."""
        ids = self._some(operations)

        def run() -> None:
            for task_id in ids:
                self._arena.store.get(task_id)

        return run

    def bare(self, operations: int) -> Callable[[], object]:
        """Its one statement."""
        return _each(self._arena, [self._script.with_parameters(task_id=one) for one in self._some(operations)])


def _others(count: int) -> list[TaskSpec]:
    """For each of `specs(count)` another one, in the same slot."""
    return [spec.replace(slot=Slot(f"slot-{number}")) for number, spec in enumerate(specs(count + 1)[1:])]


class Replace:
    """The spec, replaced at a known version."""

    name = "replace"
    baseline = SAME
    extra = "writes the spec's JSON, derives the route, parses and validates the Task"
    operations = 100
    blocks = 2
    tasks = 1

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._ids = arena.fill(2)
        self._script = record(lambda: self._operation(arena.store, self._ids[0], _others(1)[0], 1))

    def _operation(self, store: TaskStore, task_id: str, spec: TaskSpec, version: int) -> None:
        store.replace(task_id, spec, expected_version=version)

    def _work(self, operations: int) -> list[tuple[str, TaskSpec, int]]:
        # Each task once a block, and a spec that it does not have already.
        ids = self._arena.fill(operations)
        return [(task_id, spec, 1) for task_id, spec in zip(ids, _others(operations), strict=True)]

    def ours(self, operations: int) -> Callable[[], object]:
        """`TaskStore.replace`."""
        work = self._work(operations)

        def run() -> None:
            for task_id, spec, version in work:
                self._operation(self._arena.store, task_id, spec, version)

        return run

    def bare(self, operations: int) -> Callable[[], object]:
        """Its one statement."""
        return _each(
            self._arena,
            [
                self._script.with_parameters(
                    task_id=task_id, task_spec=spec.to_json(), task_slot=str(spec.slot), expected=version
                )
                for task_id, spec, version in self._work(operations)
            ],
        )


class Update(Replace):
    """Read, change, write back."""

    name = "update"
    extra = "parses and validates the Task twice, runs the change, derives the route"

    def _operation(self, store: TaskStore, task_id: str, spec: TaskSpec, version: int) -> None:  # noqa: ARG002 - it reads the version
        store.update(task_id, lambda _: spec)


class ClaimAndFinish:
    """Tasks claimed and reported as succeeded."""

    baseline = SAME
    extra = "routes by the agent's cache, parses and validates specs, decides what follows"

    def __init__(self, arena: Arena, batch: int) -> None:
        self._arena = arena
        self.tasks = batch
        self.operations = 100 if batch == 1 else 10
        self.blocks = 2
        self.name = f"claim + finish, {batch} at once" if batch > 1 else "claim + finish"
        arena.fill(2 * batch)
        self._agent = arena.store.register("benchmark", lease=timedelta(days=1))  # nobody sends heartbeats here
        self._operation()  # the agent now knows the route, as it does ever after
        claims: list[Claim] = []
        self._script = record(
            lambda: claims.extend(arena.store.claim(self._agent, limit=batch)),
            lambda: arena.store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims]),
        )

    def _operation(self) -> None:
        claims = self._arena.store.claim(self._agent, limit=self.tasks)
        refused = self._arena.store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims])
        if refused != [None] * self.tasks:
            raise RuntimeError(f"{len(claims)} of {self.tasks} tasks claimed, refused: {refused}")

    def ours(self, operations: int) -> Callable[[], object]:
        """`TaskStore.claim` and `TaskStore.finish_many`."""
        self._arena.fill(operations * self.tasks)

        def run() -> None:
            for _ in range(operations):
                self._operation()

        return run

    def bare(self, operations: int) -> Callable[[], object]:
        """Their statements, in their two transactions."""
        self._arena.fill(operations * self.tasks)
        return _each(self._arena, [self._script] * operations)


def operations(lab: Lab) -> Iterator[Series]:
    """Each of them; time by the clock, and this process's processor time."""
    once = lab.sizes.rounds == 1
    with arena(lab.server) as field:
        # Made when their turn comes: each empties the tables.
        for make in (
            lambda: Create(field),
            lambda: CreateMany(field, lab.sizes.many),
            lambda: Get(field),
            lambda: Replace(field),
            lambda: Update(field),
            lambda: ClaimAndFinish(field, 1),
            lambda: ClaimAndFinish(field, BATCH),
        ):
            case: Case = make()
            say(case.name)
            result = compare(case, rounds=1 if once else 2 * lab.sizes.rounds + 1, once=once)
            yield from _series(case, "solti-store", result.ours, case.extra)
            yield from _series(case, "bare psycopg", result.bare, case.baseline)


def _series(case: Case, lane: str, spent: Sequence[Spent], how: str) -> Iterator[Series]:
    yield Series(case.name, lane, "µs", [one.wall * 1e6 for one in spent], less=True, how=how)
    yield Series(f"{case.name}, CPU of the client", lane, "µs", [one.cpu * 1e6 for one in spent], less=True, how=how)


WORKS = (Work("operations", "each operation of the store, beside bare psycopg with the same SQL", operations),)
