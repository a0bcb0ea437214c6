"""A hypothesis state machine: every operation of the registry, beside the model, and all compared after each."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from checking.drivers import MAX_SLOT_QUEUE, Driver, Seen, micros
from checking.reference import MS, Disagreement, Model, ModelAgent, Refused, Span
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from solti_store import (
    AgentLost,
    Claim,
    Container,
    LeaseLost,
    Outcome,
    RestartPolicy,
    Retention,
    RunnerSelector,
    SoltiStoreError,
    Subprocess,
    Task,
    TaskPhase,
    TaskQuery,
    TaskSpec,
)
from solti_store.model import AdmissionPolicy, BackoffPolicy, JitterPolicy, Labels, Slot, TaskKind, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from solti_store import Agent

__all__ = ["RegistryMachine", "SteppingMachine", "explore"]

IDS = [f"t{n}" for n in range(9)]
SLOTS = ["a", "b"]
_GPU = RunnerSelector(match_labels=Labels({"gpu": "yes"}))
_KINDS: list[TaskKind] = [Subprocess.command("true"), Container.image("x")]
_RESTARTS = [
    RestartPolicy.never(),
    RestartPolicy.on_failure(),
    RestartPolicy.always(),
    RestartPolicy.always(3_600_000),
]
_BACKOFFS = [
    BackoffPolicy(jitter=jitter, first_ms=first, max_ms=most, factor=factor)
    for jitter, first, most, factor in [
        (JitterPolicy.NONE, 1, 1, 1.0),
        (JitterPolicy.NONE, 1000, 30_000, 2.5),
        (JitterPolicy.FULL, 40_000, 100_000, 2.0),
        (JitterPolicy.EQUAL, 40_001, 100_000, 2.0),
        (JitterPolicy.DECORRELATED, 40_000, 900_000, 3.0),
    ]
]


@cache
def _spec(  # noqa: PLR0917 - called by hypothesis
    slot: str, admission: AdmissionPolicy, restart: int, backoff: int, retries: int | None, route: int, n: int
) -> TaskSpec:
    return TaskSpec(
        slot=Slot(slot),
        kind=_KINDS[route % 2],
        timeout=Timeout(5000 + n),
        restart=_RESTARTS[restart],
        backoff=_BACKOFFS[backoff],
        admission=admission,
        max_retries=retries,
        runner_selector=_GPU if route == 2 else None,
        labels=Labels({"n": str(n)}),
    )


def _specs(slots: st.SearchStrategy[str]) -> st.SearchStrategy[TaskSpec]:
    return st.builds(
        _spec,
        slots,
        st.sampled_from(list(AdmissionPolicy)),
        st.integers(0, len(_RESTARTS) - 1),
        st.integers(0, len(_BACKOFFS) - 1),
        st.sampled_from([None, 1, 2]),
        st.sampled_from([0, 0, 1, 2]),
        st.integers(0, 1),
    )


specs = _specs(st.sampled_from(SLOTS))
ids = st.sampled_from(IDS)
#: Which of the agents, or of the claims that were handed out.
some = st.integers(0, 15)
#: Which of the tasks that there are; 0 is any id, and most likely none.
chosen = st.tuples(st.integers(0, 12), ids)
outcomes = st.sampled_from(
    [
        Outcome.succeeded(),
        Outcome.succeeded(0),
        Outcome.failed("no", exit_code=1),
        Outcome.failed("no", exit_code=1),
        Outcome.failed("broken", fatal=True),
        Outcome.timed_out(5000),
        Outcome.canceled(),
    ]
)


def _event_key(row: Any) -> tuple[str, int, str, int]:
    return row.type, row.resource_version, row.phase, row.attempt


class RegistryMachine(RuleBasedStateMachine):
    """What holds on any clock. A subclass, or who runs it, sets `driver`."""

    driver: ClassVar[Driver]
    #: What was reached in all examples, so that a run can say that it tested something.
    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.driver.reset()
        self.model = Model(MAX_SLOT_QUEUE)
        self.read: dict[str, Task] = {}
        self.agents: list[Agent] = []
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.driver.reset()

    # --- the two side by side ----------------------------------------------------------------------

    def both(self, expect: Callable[[Span], Any], name: str, *args: Any, **kwargs: Any) -> Any:
        """Run an operation, then the same in the model; what the operation answered, None if both refused."""
        answer, now = self.driver(name, *args, **kwargs)
        try:
            expected = expect(now)
        except Refused as refusal:
            self._compare_refusal(name, answer, refusal)
            self.reached[f"{name}: {refusal.name}"] += 1
            return None
        if isinstance(answer, BaseException):
            raise Disagreement(f"{name}{args} raised {answer!r}, expected {expected!r}") from answer
        self.reached[name] += 1
        if isinstance(answer, (Task, bool)):
            self.compare(name, answer.status.phase if isinstance(answer, Task) else answer, expected)
        return answer

    def _compare_refusal(self, name: str, answer: Any, refusal: Refused) -> None:
        if not isinstance(answer, SoltiStoreError) or type(answer).__name__ != refusal.name:
            raise Disagreement(f"{name} answered {answer!r}, expected {refusal}")
        for fact, expected in refusal.facts.items():
            self.compare(f"{name}: {refusal.name}.{fact}", getattr(answer, fact), expected)

    def compare(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise Disagreement(f"{what}: found {found!r}, expected {expected!r}")

    def _phase_of(self, task_id: str) -> str:
        return self.model.find(task_id).phase

    # --- tasks -------------------------------------------------------------------------------------

    @rule(task_id=ids, spec=specs)
    def create(self, task_id: str, spec: TaskSpec) -> None:
        def expect(now: Span) -> str:
            self.model.create_many([(task_id, spec)], now)
            return "pending"

        self.both(expect, "create", task_id, spec)

    @rule(
        items=st.lists(st.tuples(ids, specs), min_size=1, max_size=4), free=st.sampled_from([True, True, True, False])
    )
    def create_many(self, items: list[tuple[str, TaskSpec]], free: bool) -> None:
        if free:
            free_ids = [task_id for task_id in IDS if task_id not in self.model.tasks]
            items = [(task_id, spec) for task_id, (_, spec) in zip(free_ids, items, strict=False)]
        found = self.both(lambda now: self.model.create_many(items, now), "create_many", items)
        if found is not None:
            self.compare("created", [str(task.metadata.id) for task in found], [task_id for task_id, _ in items])
            self.settle()
            for task in found:
                self.compare_task(task)

    def _id(self, choice: tuple[int, str]) -> str:
        number, any_id = choice
        tasks = [*self.model.tasks]
        return tasks[number % len(tasks)] if tasks and number else any_id

    def get(self, task_id: str) -> None:
        task = self.both(lambda _: self._phase_of(task_id), "get", task_id)
        if task is not None:
            self.compare_task(task)
            self.read[task_id] = task

    @rule(choice=chosen, which=st.sampled_from(["get", "get", "runs", "held"]), limit=st.sampled_from([1, 2, 1000]))
    def read_one(self, choice: tuple[int, str], which: str, limit: int) -> None:
        if which == "get":
            self.get(self._id(choice))
        elif which == "runs":
            self.runs(self._id(choice), limit)
        else:
            for agent in self.agents:
                self.held(agent)

    @rule(phases=st.sets(st.sampled_from(list(TaskPhase)), max_size=3), slot=st.sampled_from([None, *SLOTS]))
    def list_some(self, phases: set[TaskPhase], slot: str | None) -> None:
        query = TaskQuery(phases=frozenset(phases), slot=None if slot is None else Slot(slot), with_total=True)
        page = self.both(lambda _: None, "list", query)
        expected = [
            task.id
            for task in sorted(self.model.tasks.values(), key=lambda one: one.seq or 0)
            if (not phases or task.phase in phases) and slot in {None, str(task.spec.slot)}
        ]
        self.compare("listed", [str(task.metadata.id) for task in page.items], expected)
        self.compare("total", page.total, len(expected))
        for task in page.items:
            self.compare_task(task)

    def compare_task(self, task: Task) -> None:
        """A task as its JSON has it."""
        mine = self.model.tasks[str(task.metadata.id)]
        status = {"phase": mine.phase, "attempt": mine.attempt}
        status |= {} if mine.exit_code is None else {"exitCode": mine.exit_code}
        status |= {} if mine.error is None else {"error": mine.error}
        metadata = {
            "id": mine.id,
            "resourceVersion": mine.version,
            "createdAt": mine.created.lo // MS,
            "updatedAt": mine.updated.lo // MS,
        }
        metadata |= {} if mine.generation == 1 else {"generation": mine.generation}
        expected = {"metadata": metadata, "status": status, "spec": json.loads(mine.spec.to_json())}
        self.compare("task", json.loads(task.to_json()), expected)

    @rule(
        choice=chosen,
        spec=specs,
        keep_slot=st.sampled_from([True, True, True, False]),
        how=st.sampled_from(["now", "now", "read", 1]),
    )
    def replace(self, choice: tuple[int, str], spec: TaskSpec, keep_slot: bool, how: str | int) -> None:
        task_id = self._id(choice)
        mine = self.model.tasks.get(task_id)
        if mine is not None and keep_slot:
            spec = spec.replace(slot=mine.spec.slot)
        expected, key = self._expected(task_id, how)

        def expect(now: Span) -> str:
            self.model.replace(task_id, spec, key, now)
            return self._phase_of(task_id)

        task = self.both(expect, "replace", task_id, spec, expected_version=expected)
        if task is not None:
            self.settle()
            self.compare_task(task)

    def _expected(self, task_id: str, how: str | int) -> tuple[Any, tuple[int, int | None]]:
        """A version to expect, and the same for the model: the present one, one read earlier, or 1."""
        if how == "read" and task_id in self.read:
            metadata = self.read[task_id].metadata
            return self.read[task_id], (metadata.resource_version, int(metadata.created_at))
        version = self.model.tasks[task_id].version if how == "now" and task_id in self.model.tasks else 1
        return version, (version, None)

    @rule(choice=chosen)
    def cancel(self, choice: tuple[int, str]) -> None:
        task_id = self._id(choice)

        def expect(now: Span) -> str:
            self.model.cancel(task_id, now)
            return self._phase_of(task_id)

        self.both(expect, "cancel", task_id)

    @rule(choice=chosen, how=st.sampled_from([None, "now", "read"]), which=st.sampled_from(["delete", "sign_off", ""]))
    def end_one(self, choice: tuple[int, str], how: str | None, which: str) -> None:
        if which == "delete":
            self.delete(self._id(choice), how)
        elif which == "sign_off" and self.agents:
            self.sign_off(self.agents[choice[0] % len(self.agents)])

    def delete(self, task_id: str, how: str | None) -> None:
        expected, key = (None, None) if how is None else self._expected(task_id, how)
        self.both(lambda now: self.model.delete(task_id, key, now), "delete", task_id, expected_version=expected)

    def runs(self, task_id: str, limit: int) -> None:
        found = self.both(lambda _: self.model.find(task_id), "runs", task_id, limit=limit)
        if found is not None:
            runs = sorted(self.model.tasks[task_id].runs.values(), key=lambda run: run.attempt)[-limit:]
            self.compare(
                "runs",
                [(run.attempt, run.phase, run.exit_code, run.error, int(run.started_at)) for run in found],
                [(run.attempt, run.phase, run.exit_code, run.error, run.started.lo // MS) for run in runs],
            )
            self.compare(
                "ends of runs",
                [None if run.finished_at is None else int(run.finished_at) for run in found],
                [None if run.finished is None else run.finished.lo // MS for run in runs],
            )

    # --- agents and attempts -----------------------------------------------------------------------

    @initialize(items=st.lists(st.tuples(ids, specs), min_size=3, max_size=6, unique_by=lambda item: item[0]))
    def begin(self, items: list[tuple[str, TaskSpec]]) -> None:
        self.register(("subprocess", "container"), {"gpu": "yes"}, timedelta(hours=5))
        for task_id, spec in items:
            self.create(task_id, spec)
            self.settle()

    @rule(
        kinds=st.sampled_from([("subprocess",), ("subprocess", "container")]),
        labels=st.sampled_from([{}, {"gpu": "yes"}, {"gpu": "no"}]),
        lease=st.sampled_from([timedelta(seconds=30), timedelta(hours=5)]),
    )
    def register(self, kinds: Sequence[str], labels: dict[str, str], lease: timedelta) -> None:
        agent, now = self.driver("register", f"w{len(self.model.agents) % 3}", kinds=kinds, labels=labels, lease=lease)
        lease_us = lease // timedelta(microseconds=1)
        mine = ModelAgent(agent.seq, str(agent.id), frozenset(kinds), labels, lease_us, now.plus(lease_us))
        self.model.register(mine)
        self.agents.append(agent)

    def _agent(self, n: int) -> Agent:
        """The newest for 0, then any."""
        return self.agents[n % len(self.agents) - 1]

    @rule(n=some)
    def heartbeat(self, n: int) -> None:
        agent = self._agent(n)
        expected: set[tuple[int, int]] = set()
        found = self.both(lambda now: expected.update(self.model.heartbeat(agent.seq, now)), "heartbeat", agent)
        if found is not None:
            self.compare("cancel requests", sorted((one.seq, one.attempt) for one in found), sorted(expected))

    @rule(n=some, limit=st.sampled_from([1, 2, 10]))
    def claim(self, n: int, limit: int) -> None:
        self._claim(self._agent(n), limit)

    @rule(limit=st.sampled_from([1, 10]), how=st.lists(outcomes, min_size=1, max_size=3))
    def work(self, limit: int, how: list[Outcome]) -> None:
        """Claim as the newest agent, and finish some: what most of a registry's life consists of."""
        claims = self._claim(self.agents[-1], limit)
        if claims:
            self.settle()
            self._finish([*zip(claims, how, strict=False)])

    def _claim(self, agent: Agent, limit: int) -> list[Claim]:
        answer, now = self.driver("claim", agent, limit=limit)
        taken = [] if isinstance(answer, Exception) else [str(claim.task_id) for claim in answer]
        try:
            self.model.claim(agent.seq, limit, taken, now)
        except Refused as refusal:
            self._compare_refusal("claim", answer, refusal)
            self.reached[f"claim: {refusal.name}"] += 1
            return []
        if isinstance(answer, Exception):
            raise Disagreement(f"claim raised {answer!r}") from answer
        self.reached[f"claim of {min(len(taken), 2)}"] += 1
        return [self.judged(claim) for claim in answer]

    def judged(self, claim: Claim) -> Claim:
        task = self.model.tasks[str(claim.task_id)]
        run = task.runs[task.attempt]
        if task.seq is not None:
            self.compare("seq of a claim", claim.seq, task.seq)
        self.compare("a claim", (claim.attempt, claim.spec), (task.attempt, task.spec))
        started = run.started.narrow(micros(claim.started_at), "start of a claim").lo
        self.compare("deadline of a claim", micros(claim.deadline), started + run.timeout_us)
        self.claims.append(claim)
        return claim

    @rule(choice=chosen, n=st.none() | some)
    def start(self, choice: tuple[int, str], n: int | None) -> None:
        task_id, agent = self._id(choice), None if n is None else self._agent(n)
        seq = None if agent is None else agent.seq
        claim = self.both(lambda now: self.model.start(task_id, seq, now), "start", task_id, agent)
        if claim is not None:
            self.judged(claim)

    @precondition(lambda self: self.claims)
    @rule(results=st.lists(st.tuples(some, outcomes), min_size=1, max_size=4))
    def finish(self, results: list[tuple[int, Outcome]]) -> None:
        """Any claim that was ever handed out, the newest for 0; most reports of a batch are late."""
        self._finish([(self.claims[n % len(self.claims) - 1], outcome) for n, outcome in results])

    def _finish(self, results: list[tuple[Claim, Outcome]]) -> None:
        answers, now = self.driver("finish_many", results)
        expected = self.model.finish_many([(one.seq, one.attempt, outcome) for one, outcome in results], now)
        if isinstance(answers, Exception):
            raise Disagreement(f"finish_many raised {answers!r}") from answers
        for (claim, _), answer, mine in zip(results, answers, expected, strict=True):
            if mine is None:
                self.compare("finish", answer, None)
                continue
            assert isinstance(answer, LeaseLost), f"a late finish was accepted, expected {mine}"
            self.compare("LeaseLost", (answer.task_id, answer.attempt), (claim.task_id, claim.attempt))
            self.compare("who has it now", (answer.current_attempt, answer.holder), mine)
        self.reached["finish: LeaseLost" if any(expected) else "finish"] += 1

    def held(self, agent: Agent) -> None:
        expected = sorted(self.model.held(agent.seq))
        for name in ("held", "held_keys"):
            found, _ = self.driver(name, agent)
            keys = [(one.seq, one.attempt) if isinstance(one, Claim) else one for one in found]
            self.compare(name, sorted(keys), expected)

    @rule(grace=st.sampled_from([timedelta(0), timedelta(seconds=4), timedelta(hours=1)]))
    def reap(self, grace: timedelta) -> None:
        answer, now = self.driver("reap", limit=1000, grace=grace)
        expected = self.model.reap(grace // timedelta(microseconds=1), now)
        self._compare_reaped("reap", answer, expected)

    def sign_off(self, agent: Agent) -> None:
        answer, now = self.driver("sign_off", agent)
        expected = self.model.sign_off(agent.seq, now)
        self._compare_reaped("sign_off", answer, expected)
        # It is of no more use, but for the answer that it gets from now on.
        for name in ("heartbeat", "claim"):
            refusal, _ = self.driver(name, agent, **({"limit": 1} if name == "claim" else {}))
            assert isinstance(refusal, AgentLost), f"{name} of an agent that signed off: {refusal!r}"

    def _compare_reaped(self, name: str, answer: Any, expected: set[Any]) -> None:
        if isinstance(answer, Exception):
            raise Disagreement(f"{name} raised {answer!r}") from answer
        found = {(one.task_id, one.attempt, one.agent, one.phase.value, one.will_retry) for one in answer}
        self.compare(name, found, expected)
        for one in expected:
            self.reached[f"{name}: {one[3]}"] += 1

    @rule(of_tasks=st.sampled_from([None, 0, 3600]), of_runs=st.sampled_from([None, 60]), of_agents=st.just(3600))
    def prune(self, of_tasks: int | None, of_runs: int | None, of_agents: int | None) -> None:
        kept = [None if one is None else timedelta(seconds=one) for one in (of_tasks, of_runs, of_agents)]
        retention = Retention(tasks=kept[0], runs=kept[1], agents=kept[2])
        answer, now = self.driver("prune", retention, limit=1000)
        of_tasks_us, of_runs_us, of_agents_us = (
            None if one is None else one // timedelta(microseconds=1) for one in kept
        )
        expected = self.model.prune(of_tasks_us, of_runs_us, of_agents_us, now)
        if isinstance(answer, Exception):
            raise Disagreement(f"prune raised {answer!r}") from answer
        self.compare("pruned", (answer.tasks, answer.runs, answer.agents), expected)
        for name, count in zip(("tasks", "runs", "agents"), expected, strict=True):
            self.reached[f"prune: {name}"] += count

    # --- all that can be seen -----------------------------------------------------------------------

    @invariant()
    def settle(self) -> None:
        """Compare everything, and take the moments that the model had only bounds for."""
        seen = self.driver.look()
        self._settle_tasks(seen)
        self._settle_runs(seen)
        self._compare_events(seen)
        agents = [(one.seq, one.id, one.state) for one in self.model.agents.values() if one.state != "gone"]
        self.compare("agents", [(one.seq, one.id, one.state) for one in seen.agents], agents)
        for row in seen.agents:
            mine = self.model.agents[row.seq]
            mine.expires = mine.expires.narrow(micros(row.expires_at), f"lease of agent {row.seq}")

    def _settle_tasks(self, seen: Seen) -> None:
        known = [task.seq for task in self.model.tasks.values()]
        self.compare("ids in order of creation", [row.id for row in seen.tasks], list(self.model.tasks))
        for row, seq in zip(seen.tasks, known, strict=True):
            task, what = self.model.tasks[row.id], f"task {row.id}"
            if seq is not None:
                self.compare(f"{what}: seq", row.seq, seq)
            task.seq = row.seq
            self.compare(
                what,
                (row.resource_version, row.phase, row.attempt, row.exit_code, row.error),
                (task.version, task.phase, task.attempt, task.exit_code, task.error),
            )
            self.compare(f"{what}: agent", row.agent, task.agent)
            self.compare(f"{what}: cancel requested", row.cancel_requested_at is not None, task.cancel_requested)
            self.compare(f"{what}: claimable", row.due_at is not None, task.due is not None)
            self.compare(f"{what}: deadline", row.deadline is not None, task.is_running)
            task.created = task.created.narrow(micros(row.created_at), f"{what}: created_at")
            task.updated = task.updated.narrow(micros(row.updated_at), f"{what}: updated_at")
            if task.due is not None:
                task.due = task.due.narrow(micros(row.due_at), f"{what}: due_at")
        if seen.tasks and hasattr(seen.tasks[0], "queue_key"):
            self._compare_slots(seen)

    def _compare_slots(self, seen: Seen) -> None:
        for slot in SLOTS:
            rows = [row for row in seen.tasks if row.slot == slot]
            owners = [row.id for row in rows if row.due_at is not None or row.deadline is not None]
            owner = self.model.owner(slot)
            self.compare(f"owner of {slot}", owners, [] if owner is None else [owner.id])
            queue = sorted((row for row in rows if row.queue_key is not None), key=lambda row: row.queue_key)
            self.compare(f"queue of {slot}", [row.id for row in queue], self.model.queue(slot))
            self.reached[f"queue of {len(queue)}"] += 1

    def _settle_runs(self, seen: Seen) -> None:
        tasks = {task.seq: task for task in self.model.tasks.values()}
        expected = sorted((task.seq or 0, attempt) for task in tasks.values() for attempt in task.runs)
        self.compare("runs", [(row.seq, row.attempt) for row in seen.runs], expected)
        for row in seen.runs:
            run, what = tasks[row.seq].runs[row.attempt], f"run {row.attempt} of {tasks[row.seq].id}"
            self.compare(what, (row.phase, row.exit_code, row.error, row.agent), (*run.record, run.agent))
            self.compare(f"{what} is over", row.finished_at is not None, run.finished is not None)
            run.started = run.started.narrow(micros(row.started_at), f"{what}: started_at")
            if run.finished is not None:
                run.finished = run.finished.narrow(micros(row.finished_at), f"{what}: finished_at")

    def _compare_events(self, seen: Seen) -> None:
        found: dict[int, list[tuple[str, int, str, int]]] = {}
        for row in seen.events:
            found.setdefault(row.seq, []).append(_event_key(row))
        tasks = [*self.model.gone, *self.model.tasks.values()]
        for task in tasks:
            # None: created and gone in the same operation, which cannot be.
            assert task.seq is not None
            self.compare(f"events of {task.id}", found.pop(task.seq, []), task.events)
        self.compare("events of nobody", found, {})


class SteppingMachine(RegistryMachine):
    """On a clock that the machine moves."""

    @rule(
        by=st.sampled_from(
            [
                *(timedelta(milliseconds=10), timedelta(seconds=3), timedelta(seconds=6), timedelta(seconds=20)),
                *(timedelta(seconds=31), timedelta(minutes=2), timedelta(hours=1), timedelta(hours=6)),
            ]
        )
    )
    def advance(self, by: timedelta) -> None:
        self.driver.advance(by)


def explore(
    machine: type[RegistryMachine], driver: Driver, given: settings, *phases: Phase, examples: int, steps: int
) -> Counter[str]:
    """Run a machine; what it came by, by how often.

    Args:
        machine: Which.
        driver: What it drives.
        given: What is not said here.
        *phases: Of hypothesis.
        examples: How many histories.
        steps: The most operations of each.
    """

    class Ready(machine):  # type: ignore[misc, valid-type]
        pass

    reached: Counter[str] = Counter()
    Ready.driver, Ready.reached = driver, reached
    chosen = settings(
        given,
        max_examples=examples,
        stateful_step_count=steps,
        phases=phases,
        # Failures are found again by their blob; a folder of examples would be one more thing left lying about.
        database=None,
        print_blob=True,
    )
    run_state_machine_as_test(Ready, settings=chosen)
    return reached
