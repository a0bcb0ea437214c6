"""What both stores promise about agents and attempts, at the public API."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from support import bare_engine, retrying, selecting, silence, spec

from solti_store import (
    AgentLost,
    AgentState,
    AgentStatus,
    AlreadyRunning,
    Invalid,
    LeaseLost,
    Outcome,
    RestartPolicy,
    RunnerSelector,
    TaskPhase,
    TaskStore,
    WhyReason,
)
from solti_store.model import BackoffPolicy, Embedded, JitterPolicy, SelectorRequirement, Timeout

NONE = timedelta(0)


def test_a_claim_starts_the_task_and_hands_over_all_it_takes(store: TaskStore) -> None:
    agent = store.register("w")
    task = store.create("a", spec("a", timeout=Timeout(1500)))
    (claim,) = store.claim(agent, limit=5)
    assert (claim.task_id, claim.attempt, claim.spec) == ("a", 1, task.spec)
    assert claim.deadline - claim.started_at == timedelta(milliseconds=1500)
    running = store.get("a")
    assert (running.phase, running.status.attempt, running.metadata.resource_version) == (TaskPhase.RUNNING, 1, 2)
    (run,) = store.runs("a")
    assert (run.attempt, run.phase, run.agent, run.is_active) == (1, TaskPhase.RUNNING, "w", True)
    assert store.claim(agent) == []
    assert store.held(agent) == [claim]


def test_claims_come_longest_due_first_and_never_more_than_asked(store: TaskStore) -> None:
    agent = store.register("w")
    store.create_many([(f"t-{n}", spec()) for n in range(5)])
    assert [claim.task_id for claim in store.claim(agent, limit=2)] == ["t-0", "t-1"]
    assert [claim.task_id for claim in store.claim(agent, limit=100)] == ["t-2", "t-3", "t-4"]


def test_tasks_of_several_routes_are_merged_by_due_time(store: TaskStore) -> None:
    agent = store.register("w", labels={"zone": "a", "gpu": "yes"})
    selectors = [None, selecting(zone="a"), selecting(gpu="yes"), selecting(zone="b")]
    for n in range(12):
        store.create(f"t-{n:02}", spec(runner_selector=selectors[n % 4]))
    mine = [f"t-{n:02}" for n in range(12) if n % 4 != 3]
    assert [claim.task_id for claim in store.claim(agent, limit=5)] == mine[:5]
    assert [claim.task_id for claim in store.claim(agent, limit=50)] == mine[5:]


@pytest.mark.parametrize(
    ("selector", "mine"),
    [
        (None, True),
        (RunnerSelector(), True),
        (selecting(zone="a"), True),
        (selecting(zone="b"), False),
        (RunnerSelector(match_expressions=(SelectorRequirement.not_in("zone", "b"),)), True),
        (RunnerSelector(match_expressions=(SelectorRequirement.exists("gpu"),)), False),
    ],
)
def test_a_task_goes_only_where_its_selector_matches(
    store: TaskStore, selector: RunnerSelector | None, mine: bool
) -> None:
    agent = store.register("w", labels={"zone": "a"})
    # The task's own labels play no part.
    store.create("a", spec("a", runner_selector=selector, labels={"zone": "b", "gpu": "yes"}))
    assert bool(store.claim(agent)) is mine


def test_a_task_goes_only_where_its_kind_runs(store: TaskStore) -> None:
    store.create("a", spec("a", kind=Embedded()))
    assert store.claim(store.register("other", kinds=["subprocess", "wasm"])) == []
    assert len(store.claim(store.register("w", kinds=["embedded"]))) == 1


def test_a_new_selector_on_a_pending_task_reroutes_it(store: TaskStore) -> None:
    agent = store.register("w", labels={"zone": "a"})
    store.create("a", spec("a", runner_selector=selecting(zone="b")))
    assert store.claim(agent) == []
    store.replace("a", spec("a", runner_selector=selecting(zone="a")), expected_version=1)
    assert len(store.claim(agent)) == 1


# --- finishing ----------------------------------------------------------------------------------


def test_success_is_final_and_closes_the_run(store: TaskStore) -> None:
    store.create("a", spec("a"))
    store.finish(store.start("a"), Outcome.succeeded(0))
    done = store.get("a")
    assert (done.phase, done.status.exit_code, done.status.error) == (TaskPhase.SUCCEEDED, 0, None)
    assert done.metadata.resource_version == 3
    (run,) = store.runs("a")
    assert (run.phase, run.exit_code, run.agent) == (TaskPhase.SUCCEEDED, 0, None)
    assert run.finished_at is not None
    assert run.finished_at >= run.started_at


def test_the_same_outcome_again_is_silent_and_another_is_refused(store: TaskStore) -> None:
    store.create("a", spec("a"))
    claim = store.start("a")
    store.finish(claim, Outcome.failed("no", exit_code=1))
    done = store.get("a")
    store.finish(claim, Outcome.failed("no", exit_code=1))
    for other in (Outcome.succeeded(0), Outcome.failed("no", exit_code=2), Outcome.failed("yes", exit_code=1)):
        with pytest.raises(LeaseLost) as refusal:
            store.finish(claim, other)
        assert (refusal.value.attempt, refusal.value.current_attempt, refusal.value.holder) == (1, 1, None)
    assert store.get("a") == done


def test_output_is_kept_with_the_run(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("a", retrying())
    store.finish(store.start("a", agent), Outcome.failed("x").with_output("é\n\x1b[1m", ""))
    store.finish(store.start("a", agent), Outcome.succeeded(0).with_output("o" * 196_608, "\ufffd" * 65_536))
    store.start("a", agent)
    assert [(run.stdout, run.stderr) for run in store.runs("a")] == [
        ("é\n\x1b[1m", None),
        ("o" * 196_608, "\ufffd" * 65_536),
        (None, None),
    ]
    assert "stdout" not in store.get("a").to_json()


def test_output_is_no_part_of_the_same_outcome_again(store: TaskStore) -> None:
    store.create("a", spec())
    (claim,) = store.claim(store.register("w"))
    store.finish(claim, Outcome.failed("x").with_output("first", None))
    store.finish(claim, Outcome.failed("x").with_output("second", "more"))
    (run,) = store.runs("a")
    assert (run.stdout, run.stderr) == ("first", None)


@pytest.mark.parametrize("text", ["o" * 196_609, "é" * 98_305, "a\0", "\ud800"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_that_cannot_be_stored_is_invalid(name: str, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        Outcome.succeeded().with_output(**{"stdout": None, "stderr": None, name: text})
    assert refused.value.field == name


def test_a_late_finish_learns_who_holds_the_task_now(store: TaskStore) -> None:
    store.create("a", retrying("a"))
    first = store.start("a")
    store.finish(first, Outcome.failed("no"))
    store.start("a", store.register("second"))
    with pytest.raises(LeaseLost) as refusal:
        store.finish(first, Outcome.succeeded())
    assert (refusal.value.current_attempt, refusal.value.holder) == (2, "second")
    # A repeat of what is on record stays silent, however long ago.
    store.finish(first, Outcome.failed("no"))
    assert store.get("a").phase is TaskPhase.RUNNING


def test_nothing_of_an_old_incarnation_reaches_a_recreated_task(store: TaskStore) -> None:
    store.create("a", spec("a"))
    old = store.start("a")
    store.delete("a")
    store.create("a", spec("a"))
    new = store.start("a")
    assert (old.attempt, new.attempt) == (1, 1)
    with pytest.raises(LeaseLost) as refusal:
        store.finish(old, Outcome.succeeded())
    assert refusal.value.current_attempt is None
    assert store.get("a").phase is TaskPhase.RUNNING
    store.finish(new, Outcome.succeeded())


def test_a_batch_of_finishes_answers_each_in_its_place(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(4)])
    claims = [store.start(f"t-{n}") for n in range(4)]
    store.finish(claims[1], Outcome.failed("before"))
    store.delete("t-3")
    answers = store.finish_many(
        [
            (claims[3], Outcome.succeeded()),
            (claims[2], Outcome.succeeded(0)),
            (claims[1], Outcome.succeeded()),
            (claims[0], Outcome.failed("no")),
            (claims[0], Outcome.failed("no")),
            (claims[2], Outcome.failed("twice, differently")),
        ]
    )
    assert [type(answer) for answer in answers] == [LeaseLost, type(None), LeaseLost] + [type(None)] * 2 + [LeaseLost]
    assert [store.get(f"t-{n}").phase for n in range(3)] == [TaskPhase.FAILED, TaskPhase.FAILED, TaskPhase.SUCCEEDED]
    assert store.finish_many([]) == []


def test_failures_retry_until_the_streak_is_used_up(store: TaskStore) -> None:
    store.create("a", retrying("a", max_retries=2))
    agent = store.register("w")
    phases = []
    for _ in range(3):
        while not (claims := store.claim(agent)):
            pass  # due in a millisecond
        store.finish(claims[0], Outcome.failed("no", exit_code=1))
        phases.append(store.get("a").phase)
    assert phases == [TaskPhase.FAILED, TaskPhase.FAILED, TaskPhase.EXHAUSTED]
    runs = store.runs("a")
    assert [(run.attempt, run.phase, run.error) for run in runs] == [(n, TaskPhase.FAILED, "no") for n in (1, 2, 3)]
    assert store.get("a").status.error == "no"
    assert store.claim(agent) == []


def test_a_success_between_resets_the_streak_but_not_the_attempts(store: TaskStore) -> None:
    store.create("a", retrying("a", max_retries=1).replace(restart=RestartPolicy.always(0)))
    for outcome, phase in [
        (Outcome.failed("no"), TaskPhase.FAILED),
        (Outcome.succeeded(), TaskPhase.SUCCEEDED),
        (Outcome.failed("no"), TaskPhase.FAILED),
        (Outcome.failed("no"), TaskPhase.EXHAUSTED),
    ]:
        store.finish(store.start("a"), outcome)
        assert store.get("a").phase is phase
    assert [run.attempt for run in store.runs("a")] == [1, 2, 3, 4]


def test_a_fatal_failure_is_never_retried(store: TaskStore) -> None:
    store.create("a", retrying("a"))
    store.finish(store.start("a"), Outcome.failed("no such program", fatal=True))
    assert store.claim(store.register("w")) == []
    assert store.get("a").phase is TaskPhase.FAILED


def test_a_periodic_task_is_due_again_after_its_interval(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("now", spec("now", restart=RestartPolicy.always()))
    store.create("later", spec("later", restart=RestartPolicy.always(3_600_000)))
    store.finish_many([(claim, Outcome.succeeded()) for claim in store.claim(agent, limit=2)])
    assert [claim.task_id for claim in store.claim(agent, limit=2)] == ["now"]
    assert store.get("later").phase is TaskPhase.SUCCEEDED


def test_waits_past_any_calendar_are_cut_not_refused(store: TaskStore) -> None:
    longest = 2**64 - 1
    store.create(
        "a", retrying().replace(backoff=BackoffPolicy(first_ms=longest, max_ms=longest, jitter=JitterPolicy.NONE))
    )
    store.finish(store.start("a"), Outcome.failed("no"))
    store.create("b", spec("b", restart=RestartPolicy.always(longest)))
    store.finish(store.start("b"), Outcome.succeeded())
    assert store.claim(store.register("w"), limit=2) == []


@pytest.mark.parametrize("error", ["nul \x00", "surrogate \udcff"])
def test_an_error_that_cannot_be_stored_is_invalid(error: str) -> None:
    with pytest.raises(Invalid):
        Outcome.failed(error)


def test_cancellation_wins_over_a_retry_but_not_over_the_truth(store: TaskStore) -> None:
    store.create("retry", retrying("retry"))
    store.create("done", spec("done"))
    retry, done = store.start("retry"), store.start("done")
    store.cancel("retry")
    store.cancel("done")
    store.finish(retry, Outcome.failed("no"))
    store.finish(done, Outcome.succeeded(0))
    assert store.get("retry").phase is TaskPhase.CANCELED
    assert store.runs("retry")[0].phase is TaskPhase.FAILED
    assert store.get("done").phase is TaskPhase.SUCCEEDED
    assert store.claim(store.register("w"), limit=2) == []


# --- starting by name ---------------------------------------------------------------------------


def test_start_leads_out_of_every_phase_but_running(store: TaskStore) -> None:
    store.create("a", spec("a"))
    ends = [Outcome.succeeded(1), Outcome.failed("no", exit_code=2), Outcome.timed_out(5000), Outcome.canceled()]
    for attempt, outcome in enumerate(ends, start=1):
        claim = store.start("a")
        assert claim.attempt == attempt
        with pytest.raises(AlreadyRunning) as busy:
            store.start("a")
        assert busy.value.attempt == attempt
        status = store.get("a").status
        assert (status.phase, status.error, status.exit_code) == (TaskPhase.RUNNING, None, None)
        store.finish(claim, outcome)
        assert store.get("a").phase is outcome.phase
    assert [run.phase for run in store.runs("a")] == [outcome.phase for outcome in ends]
    assert [run.attempt for run in store.runs("a", limit=2)] == [3, 4]


# --- agents -------------------------------------------------------------------------------------


def test_a_silent_agent_is_closed_with_all_it_ran(store: TaskStore, database_url: str) -> None:
    agent = store.register("w")
    store.create("again", retrying("again"))
    store.create("once", spec("once"))
    store.create("unwanted", retrying("unwanted"))
    claims = {str(claim.task_id): claim for claim in store.claim(agent, limit=3)}
    store.cancel("unwanted")
    silence(database_url, agent)
    for call in (lambda: store.claim(agent), lambda: store.start("again", agent)):
        with pytest.raises(AgentLost):
            call()
    reaped = {str(one.task_id): one for one in store.reap()}
    assert set(reaped) == set(claims)
    assert {one.agent for one in reaped.values()} == {"w"}
    assert (reaped["again"].phase, reaped["again"].will_retry) == (TaskPhase.FAILED, True)
    assert (reaped["once"].phase, reaped["once"].will_retry) == (TaskPhase.FAILED, False)
    assert (reaped["unwanted"].phase, reaped["unwanted"].will_retry) == (TaskPhase.CANCELED, False)
    assert store.get("again").status.error == "lease expired: agent w stopped reporting"
    assert store.get("once").phase is TaskPhase.FAILED
    assert store.get("unwanted").phase is TaskPhase.CANCELED
    with pytest.raises(AgentLost):
        store.heartbeat(agent)
    with pytest.raises(LeaseLost):
        store.finish(claims["again"], Outcome.succeeded())
    assert store.reap() == []


def test_a_heartbeat_keeps_the_lease(store: TaskStore) -> None:
    agent = store.register("w", lease=timedelta(hours=1))
    store.create("a", spec("a"))
    store.claim(agent)
    assert store.heartbeat(agent) == []
    assert store.reap() == []
    assert store.get("a").phase is TaskPhase.RUNNING


def test_a_name_in_use_again_is_another_incarnation(store: TaskStore, database_url: str) -> None:
    old = store.register("w")
    store.create_many([("a", retrying()), ("b", spec())])
    (claim,) = store.claim(old)
    new = store.register("w")
    (other,) = store.claim(new)
    silence(database_url, old)
    assert [one.task_id for one in store.reap()] == ["a"]
    assert store.heartbeat(new) == []
    store.finish(other, Outcome.succeeded())
    with pytest.raises(LeaseLost):
        store.finish(claim, Outcome.succeeded())


def test_an_attempt_past_its_deadline_is_timed_out_by_anyone(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("a", retrying("a", timeout=Timeout(1)))
    (claim,) = store.claim(agent)
    while not (reaped := store.reap(grace=NONE)):
        pass  # a millisecond
    assert [(one.task_id, one.agent, one.phase, one.will_retry) for one in reaped] == [
        ("a", "w", TaskPhase.TIMEOUT, True)
    ]
    assert store.runs("a")[0].error == "timed out after 1ms"
    # Its worker's own report of the same timeout is no news.
    store.finish(claim, Outcome.timed_out(1))
    with pytest.raises(LeaseLost):
        store.finish(claim, Outcome.succeeded())


def test_an_attempt_is_left_to_its_worker_for_the_grace(store: TaskStore) -> None:
    store.create("a", spec("a", timeout=Timeout(1)))
    store.start("a")
    assert store.reap(grace=timedelta(hours=1)) == []


def test_a_heartbeat_revives_an_agent_that_nobody_missed_yet(store: TaskStore, database_url: str) -> None:
    agent = store.register("w")
    store.create("a", spec("a"))
    silence(database_url, agent)
    assert store.heartbeat(agent) == []
    assert len(store.claim(agent)) == 1
    assert store.reap() == []


def test_signing_off_ends_what_still_runs(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("a", retrying("a"))
    store.claim(agent)
    assert [one.task_id for one in store.sign_off(agent)] == ["a"]
    assert store.get("a").status.error == "agent w signed off"
    assert store.sign_off(agent) == []
    with pytest.raises(AgentLost):
        store.heartbeat(agent)


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("a b", {}, "agent_id"),
        ("x" * 129, {}, "agent_id"),
        ("w", {"kinds": ["magic"]}, "magic"),
        ("w", {"labels": {"k": "\x00"}}, "k"),
        ("w", {"lease": NONE}, "lease"),
        ("w", {"lease": timedelta(days=2)}, "lease"),
    ],
)
def test_an_agent_that_cannot_be_is_invalid(
    store: TaskStore, name: str, options: dict[str, object], field: str
) -> None:
    with pytest.raises(Invalid, match=field):
        store.register(name, **options)  # type: ignore[arg-type]


def test_limits_below_one_are_invalid(store: TaskStore) -> None:
    agent = store.register("w")
    store.create("a", spec("a"))
    for call in (lambda: store.claim(agent, limit=0), lambda: store.runs("a", limit=0), lambda: store.reap(limit=0)):
        with pytest.raises(Invalid, match="limit"):
            call()


# --- who works ----------------------------------------------------------------------------------


def test_an_agent_that_drains_gets_nothing_and_keeps_what_it_has(store: TaskStore) -> None:
    agent, other = store.register("w", capacity=3), store.register("other")
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    (claim,) = store.claim(agent)
    store.drain(agent)
    store.drain(store.agents()[0])
    assert store.claim(agent, limit=3) == []
    assert [(one.state, one.capacity, one.running) for one in store.agents()] == [
        (AgentState.DRAINING, 3, 1),
        (AgentState.ACTIVE, None, 0),
    ]
    assert store.heartbeat(agent) == []
    assert store.why("t-1").reason is WhyReason.DUE
    store.sign_off(other)
    assert store.why("t-1").unfit[0].lacks == "time (it drains)"
    store.finish(claim, Outcome.succeeded())
    store.sign_off(agent)
    with pytest.raises(AgentLost):
        store.drain(agent)


@pytest.mark.parametrize("capacity", [0, -1, True, "3", 2**31])
def test_a_capacity_that_cannot_be_is_invalid(store: TaskStore, capacity: Any) -> None:
    with pytest.raises(Invalid, match="capacity must be"):
        store.register("w", capacity=capacity)
    assert store.agents() == ()


def test_agents_are_listed_with_their_state_and_what_they_run(store: TaskStore, database_url: str) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    lease = timedelta(seconds=90)
    busy = store.register("busy", kinds=["wasm", "subprocess"], labels={"zone": "a"}, lease=lease)
    idle, silent, gone = store.register("idle"), store.register("silent"), store.register("gone")
    store.claim(busy, limit=2)
    store.claim(gone, limit=1)
    store.sign_off(gone)
    silence(database_url, silent)
    listed = store.agents()
    assert [(agent.id, agent.state, agent.running) for agent in listed] == [
        ("busy", AgentState.ACTIVE, 2),
        ("idle", AgentState.ACTIVE, 0),
        ("silent", AgentState.SILENT, 0),
    ]
    assert (listed[0].seq, listed[0].kinds, dict(listed[0].labels)) == (busy.seq, ("subprocess", "wasm"), {"zone": "a"})
    assert listed[0].lease == 90_000
    assert listed[0].registered_at == listed[0].heartbeat_at
    store.reap()
    everybody = store.agents(closed=True)
    assert [agent.state for agent in everybody] == ["active", "active", "lost", "stopped"]
    assert store.agents(closed=True, after=idle.seq, limit=1) == everybody[2:3]
    assert AgentStatus.from_json(listed[0].to_json()) == listed[0]
    for after in (-1, 2**63, True, "1"):
        with pytest.raises(Invalid, match="after must be an integer"):
            store.agents(after=after)  # type: ignore[arg-type]


# --- specs that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("{kind,subprocess,mode}", '{"nonsense": 1}'),
        ("{labels}", '{"a": 5}'),
        ("{restart}", '{"type": "always", "intervalMs": "often"}'),
        ("{runnerSelector}", "[]"),
        ("{maxRetries}", "1.5"),
        ("{maxRetries}", "1e20"),
    ],
)
def test_a_spec_that_cannot_be_read_fails_alone(store: TaskStore, database_url: str, path: str, value: str) -> None:
    store.create_many([(name, retrying()) for name in ("before", "poison", "after")])
    engine = bare_engine(database_url)
    with engine.begin() as connection:
        poison = text(
            "UPDATE solti.tasks SET spec = jsonb_set(spec, CAST(:path AS text[]), CAST(:value AS jsonb))"
            " WHERE id = 'poison'"
        )
        connection.execute(poison, {"path": path, "value": value})
    agent = store.register("w")
    assert [claim.task_id for claim in store.claim(agent, limit=1)] == ["before"]
    # One that is claimed alone does not look like nothing to do.
    assert [claim.task_id for claim in store.claim(agent, limit=1)] == ["after"]
    assert store.claim(agent, limit=10) == []
    with engine.begin() as connection:
        status = connection.execute(
            text("SELECT phase, due_at, error FROM solti.task_status JOIN solti.tasks USING (seq) WHERE id = 'poison'")
        ).one()
    assert (status.phase, status.due_at) == ("failed", None)
    assert status.error.startswith("spec cannot be read: invalid model: ")
    (run,) = store.runs("poison")
    assert (run.attempt, run.phase, run.agent) == (1, TaskPhase.FAILED, "w")
    store.index_labels()  # nor does it keep the others from being indexed
    # By hand it is told why, and nothing is started.
    with pytest.raises(Invalid):
        store.start("poison")
    assert len(store.runs("poison")) == 1
    engine.dispose()


def test_an_attempt_whose_policies_became_unreadable_is_not_retried(store: TaskStore, database_url: str) -> None:
    store.create("a", retrying("a"))
    agent = store.register("w")
    (claim,) = store.claim(agent)
    engine = bare_engine(database_url)
    broken = 'UPDATE solti.tasks SET spec = jsonb_set(spec, \'{restart}\', \'{"type": "always", "intervalMs": []}\')'
    with engine.begin() as connection:
        connection.execute(text(broken.replace(":", "\\:")))
        # As every writer of specs does: else what the claim brought along still counts.
        connection.execute(text("UPDATE solti.task_status SET resource_version = resource_version + 1"))
    store.finish(claim, Outcome.failed("no"))
    with engine.begin() as connection:
        assert connection.execute(text("SELECT phase, due_at FROM solti.task_status")).one() == ("failed", None)
    engine.dispose()


def test_what_an_agent_runs_is_told_without_the_specs(store: TaskStore) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    agent = store.register("w")
    claims = store.claim(agent, limit=2)
    assert store.held_keys(agent) == {(claim.seq, claim.attempt) for claim in claims}
    assert store.held_keys(store.register("w")) == frozenset()


def test_a_route_that_cannot_be_read_is_for_others(store: TaskStore, database_url: str) -> None:
    store.create("a", spec("a"))
    engine = bare_engine(database_url)
    with engine.begin() as connection:
        selector = """'{"matchLabels": {"a": 5}}'"""
        connection.exec_driver_sql(
            f"INSERT INTO solti.routes (id, kind, selector) VALUES (gen_random_uuid(), 'subprocess', {selector})"
        )
    assert [claim.task_id for claim in store.claim(store.register("w"))] == ["a"]
    engine.dispose()
