"""What follows a finish, and how long it waits: the formulae of the contract, over all policies."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import spec

from solti_store import Outcome, RestartPolicy, RunnerSelector, Subprocess, TaskPhase
from solti_store.model import BackoffPolicy, Embedded, JitterPolicy, Labels
from solti_store.rules.backoff import base_ms, delay_ms
from solti_store.rules.restart import Next, after
from solti_store.rules.routing import route_of, serves

U64_MAX = 2**64 - 1
MILLISECONDS = st.integers(1, U64_MAX) | st.integers(1, 100_000)


@st.composite
def backoffs(draw: st.DrawFn) -> BackoffPolicy:
    first, most = sorted((draw(MILLISECONDS), draw(MILLISECONDS)))
    factor = draw(st.floats(1, 10) | st.floats(1, 1e308))
    return BackoffPolicy(first_ms=first, max_ms=most, factor=factor, jitter=draw(st.sampled_from(JitterPolicy)))


def low(least: float, _most: float) -> float:
    return least


def high(_least: float, most: float) -> float:
    return most


@given(backoffs(), st.integers(0, 2000))
def test_the_base_is_first_times_factor_to_the_n_and_never_more_than_max(policy: BackoffPolicy, n: int) -> None:
    base = base_ms(policy, n)
    assert policy.first_ms <= base <= policy.max_ms or base == int(float(policy.first_ms))
    exact = policy.first_ms * Fraction(policy.factor) ** min(n, 200)
    if n <= 200 and exact < policy.max_ms:
        assert abs(base - exact) <= 1 + exact / 2**40
    elif n > 200 and exact >= policy.max_ms:
        assert base == policy.max_ms


@given(backoffs(), st.integers(0, 100), st.integers())
def test_every_jitter_stays_in_its_interval(policy: BackoffPolicy, n: int, seed: int) -> None:
    base = base_ms(policy, n)
    bounds = {
        JitterPolicy.NONE: (base, base),
        JitterPolicy.FULL: (0, base),
        JitterPolicy.EQUAL: (base // 2, base),
        JitterPolicy.DECORRELATED: (policy.first_ms, max(policy.first_ms, min(3 * base, policy.max_ms))),
    }
    least, most = bounds[policy.jitter]
    assert delay_ms(policy, n, low) == max(1, least)
    assert delay_ms(policy, n, high) == max(1, most)
    assert max(1, least) <= delay_ms(policy, n, random.Random(seed).uniform) <= max(1, most)


@pytest.mark.parametrize(
    ("n", "expected"), [(0, 1000), (1, 2000), (4, 16_000), (5, 30_000), (5000, 30_000), (10**9, 30_000)]
)
def test_the_default_backoff(n: int, expected: int) -> None:
    assert base_ms(BackoffPolicy(), n) == expected


def follow(outcome: Outcome, restart: RestartPolicy, **facts: object) -> Next:
    known = {"max_retries": None, "failures": 0, "cancel_requested": False} | facts
    policy = BackoffPolicy(jitter=JitterPolicy.NONE)
    return after(outcome, restart=restart, backoff=policy, uniform=low, **known)  # type: ignore[arg-type]


NEVER, ON_FAILURE, ALWAYS = RestartPolicy.never(), RestartPolicy.on_failure(), RestartPolicy.always(7)
SUCCESS, FAILURE, TIMEOUT, CANCELED = (
    Outcome.succeeded(0),
    Outcome.failed("no"),
    Outcome.timed_out(5),
    Outcome.canceled(),
)
FATAL = Outcome.failed("no", fatal=True)


@pytest.mark.parametrize(
    ("outcome", "restart", "expected"),
    [
        (SUCCESS, NEVER, Next(TaskPhase.SUCCEEDED, 0)),
        (SUCCESS, ON_FAILURE, Next(TaskPhase.SUCCEEDED, 0)),
        (SUCCESS, ALWAYS, Next(TaskPhase.SUCCEEDED, 0, 7)),
        (SUCCESS, RestartPolicy.always(), Next(TaskPhase.SUCCEEDED, 0, 0)),
        (FAILURE, NEVER, Next(TaskPhase.FAILED, 1)),
        (FAILURE, ON_FAILURE, Next(TaskPhase.FAILED, 1, 1000)),
        (FAILURE, ALWAYS, Next(TaskPhase.FAILED, 1, 1000)),
        (TIMEOUT, NEVER, Next(TaskPhase.TIMEOUT, 1)),
        (TIMEOUT, ON_FAILURE, Next(TaskPhase.TIMEOUT, 1, 1000)),
        (TIMEOUT, ALWAYS, Next(TaskPhase.TIMEOUT, 1, 1000)),
        (FATAL, ALWAYS, Next(TaskPhase.FAILED, 1)),
        (CANCELED, ALWAYS, Next(TaskPhase.CANCELED, 0)),
    ],
)
def test_the_table_of_the_contract(outcome: Outcome, restart: RestartPolicy, expected: Next) -> None:
    assert follow(outcome, restart) == expected


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**32))
def test_k_retries_are_k_plus_one_attempts_in_a_streak(retries: int, failures: int) -> None:
    following = follow(FAILURE, ON_FAILURE, max_retries=retries, failures=failures)
    assert (following.phase is TaskPhase.EXHAUSTED) == (failures + 1 > retries)
    assert (following.delay_ms is None) == (following.phase is TaskPhase.EXHAUSTED)


@given(
    st.sampled_from([SUCCESS, FAILURE, TIMEOUT, CANCELED, FATAL]),
    st.sampled_from([NEVER, ON_FAILURE, ALWAYS]),
    st.none() | st.integers(1, 3),
    st.integers(0, 5),
)
def test_nothing_starts_again_once_cancellation_was_asked_for(
    outcome: Outcome, restart: RestartPolicy, retries: int | None, failures: int
) -> None:
    following = follow(outcome, restart, max_retries=retries, failures=failures, cancel_requested=True)
    assert following.delay_ms is None


@given(
    st.sampled_from([SUCCESS, FAILURE, TIMEOUT, CANCELED, FATAL]),
    st.sampled_from([NEVER, ON_FAILURE, ALWAYS]),
    st.integers(0, 5),
)
def test_the_streak_counts_failures_and_a_success_ends_it(
    outcome: Outcome, restart: RestartPolicy, failures: int
) -> None:
    expected = {TaskPhase.SUCCEEDED: 0, TaskPhase.CANCELED: failures}.get(outcome.phase, failures + 1)
    assert follow(outcome, restart, failures=failures).failures == expected


@pytest.mark.parametrize("phase", [TaskPhase.PENDING, TaskPhase.RUNNING, TaskPhase.EXHAUSTED])
def test_an_attempt_ends_in_a_reportable_phase(phase: TaskPhase) -> None:
    with pytest.raises(ValueError, match="cannot end"):
        Outcome(phase=phase)


def test_only_a_failure_is_fatal() -> None:
    with pytest.raises(ValueError, match="fatal"):
        Outcome(phase=TaskPhase.SUCCEEDED, fatal=True)


def test_a_route_is_the_kind_and_the_selector_and_nothing_else() -> None:
    zone_a = RunnerSelector(match_labels=Labels(zone="a"))
    plain, labelled = route_of(spec()), route_of(spec(slot="other", labels=Labels(zone="a"), max_retries=2))
    assert plain == labelled
    assert plain == route_of(spec(runner_selector=RunnerSelector()))
    ids = {plain.id, route_of(spec(kind=Embedded())).id, route_of(spec(runner_selector=zone_a)).id}
    assert len(ids) == 3
    assert serves(["subprocess"], {}, kind=plain.kind, selector=plain.selector)
    assert not serves(["wasm"], {}, kind=plain.kind, selector=plain.selector)
    zoned = route_of(spec(kind=Subprocess.command("x"), runner_selector=zone_a))
    assert serves(["subprocess"], {"zone": "a"}, kind=zoned.kind, selector=zoned.selector)
    assert not serves(["subprocess"], {}, kind=zoned.kind, selector=zoned.selector)
