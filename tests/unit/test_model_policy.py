"""Policies and phases: text forms, wire forms, rules."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solti_store.model import (
    ACTIVE_PHASES,
    TERMINAL_PHASES,
    AdmissionPolicy,
    BackoffPolicy,
    Invalid,
    JitterPolicy,
    ModelError,
    RestartPolicy,
    TaskPhase,
    UnknownAdmissionPolicy,
    UnknownJitterPolicy,
    UnknownRestartPolicy,
    UnknownTaskPhase,
)

NEVER, ON_FAILURE, ALWAYS = RestartPolicy.never(), RestartPolicy.on_failure(), RestartPolicy.always()

TEXTS: list[tuple[Any, str, Any]] = [
    (RestartPolicy, "", NEVER),
    (RestartPolicy, "never", NEVER),
    (RestartPolicy, "on-failure", ON_FAILURE),
    (RestartPolicy, "failure", ON_FAILURE),
    (RestartPolicy, "always", ALWAYS),
    (RestartPolicy, "always:", ALWAYS),
    (RestartPolicy, "always:   ", ALWAYS),
    (RestartPolicy, "always:0", RestartPolicy.always(0)),
    (RestartPolicy, "always: 60000", RestartPolicy.always(60_000)),
    (RestartPolicy, "always:007", RestartPolicy.always(7)),
    (RestartPolicy, "always:18446744073709551615", RestartPolicy.always(2**64 - 1)),
    (JitterPolicy, "", JitterPolicy.FULL),
    (JitterPolicy, "full", JitterPolicy.FULL),
    (JitterPolicy, "default", JitterPolicy.FULL),
    (JitterPolicy, "none", JitterPolicy.NONE),
    (JitterPolicy, "equal", JitterPolicy.EQUAL),
    (JitterPolicy, "decorrelated", JitterPolicy.DECORRELATED),
    (AdmissionPolicy, "", AdmissionPolicy.DROP_IF_RUNNING),
    (AdmissionPolicy, "drop-if-running", AdmissionPolicy.DROP_IF_RUNNING),
    (AdmissionPolicy, "drop", AdmissionPolicy.DROP_IF_RUNNING),
    (AdmissionPolicy, "queue", AdmissionPolicy.QUEUE),
    (AdmissionPolicy, "add", AdmissionPolicy.QUEUE),
    (AdmissionPolicy, "new", AdmissionPolicy.QUEUE),
    (AdmissionPolicy, "replace", AdmissionPolicy.REPLACE),
    *((TaskPhase, phase.value, phase) for phase in TaskPhase),
]


@pytest.mark.parametrize(("kind", "text", "value"), TEXTS)
def test_text_forms_are_trimmed_and_ignore_case(kind: Any, text: str, value: Any) -> None:
    assert kind.parse(text) == kind.parse(text.upper()) == kind.parse(f" \t{text.title()}\n") == value


@pytest.mark.parametrize(
    ("kind", "error", "message", "texts"),
    [
        (
            RestartPolicy,
            UnknownRestartPolicy,
            "unknown restart policy: ",
            [
                "x",
                "onfailure",
                "always:x",
                "always:-1",
                "always:+1",
                "always:1.0",
                "always:1_0",
                "always:٣",
                "always:18446744073709551616",
                "always:" + "9" * 5000,
                "never:",
                "never:5",
                ":5",
                "always :5",
            ],
        ),
        (JitterPolicy, UnknownJitterPolicy, "unknown jitter policy: ", ["x", "fu ll", "\uff46ull"]),
        (
            AdmissionPolicy,
            UnknownAdmissionPolicy,
            "unknown admission policy: ",
            ["x", "drop if running", "dropIfRunning", "\0"],
        ),
        (TaskPhase, UnknownTaskPhase, "unknown task phase: ", ["", "cancelled", "done", "\ud800"]),
    ],
)
def test_unknown_texts_are_their_own_error(kind: Any, error: type[ModelError], message: str, texts: Any) -> None:
    for text in texts:
        with pytest.raises(error) as caught:
            kind.parse(text)
        assert str(caught.value).startswith(message)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 100


@given(st.sampled_from([NEVER, ON_FAILURE, ALWAYS]) | st.integers(0, 2**64 - 1).map(RestartPolicy.always))
def test_restart_policies_display_as_what_they_parse_from(policy: RestartPolicy) -> None:
    assert RestartPolicy.parse(str(policy)) == policy


def test_the_display_of_restart_policies() -> None:
    shown = [str(policy) for policy in (NEVER, ON_FAILURE, ALWAYS, RestartPolicy.always(0))]
    assert shown == ["never", "on-failure", "always", "always:0"]


def test_the_enums_display_as_what_they_parse_from() -> None:
    for admission in AdmissionPolicy:
        assert AdmissionPolicy.parse(admission.text) is admission
    for jitter in JitterPolicy:
        assert JitterPolicy.parse(str(jitter)) is jitter
    for phase in TaskPhase:
        assert TaskPhase.parse(str(phase)) is phase
    assert [str(admission) for admission in AdmissionPolicy] == ["dropIfRunning", "replace", "queue"]


def test_an_interval_belongs_to_always() -> None:
    with pytest.raises(TypeError, match="always"):
        RestartPolicy(type="never", interval_ms=5)
    with pytest.raises(Invalid) as caught:
        RestartPolicy.always(2**64)
    assert caught.value.field == "intervalMs"
    # A document is less strict: to the other types the key is unknown, so it is ignored.
    assert RestartPolicy.from_json('{"type":"onFailure","intervalMs":5}') == ON_FAILURE


def test_phases_are_active_or_terminal() -> None:
    assert {TaskPhase.PENDING, TaskPhase.RUNNING} == ACTIVE_PHASES
    assert len(TERMINAL_PHASES) == 5
    for phase in TaskPhase:
        assert phase.is_active == (phase in ACTIVE_PHASES) == (not phase.is_terminal)
        assert phase.is_terminal == (phase in TERMINAL_PHASES)


def test_backoff_defaults() -> None:
    assert BackoffPolicy().to_json() == '{"jitter":"full","firstMs":1000,"maxMs":30000,"factor":2.0}'


@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"first_ms": 0}, "backoff first_ms must be greater than zero", "firstMs"),
        ({"first_ms": 0, "max_ms": 0, "factor": 0}, "backoff first_ms must be greater than zero", "firstMs"),
        ({"first_ms": 2, "max_ms": 1, "factor": 0}, "backoff max_ms must be >= first_ms", "maxMs"),
        ({"factor": 0.999}, "backoff factor must be finite and >= 1.0", "factor"),
        ({"factor": -2.0}, "backoff factor must be finite and >= 1.0", "factor"),
        ({"factor": float("nan")}, "backoff factor must be finite and >= 1.0", "factor"),
        ({"factor": float("inf")}, "backoff factor must be finite and >= 1.0", "factor"),
    ],
    ids=str,
)
def test_backoff_rules(changes: dict[str, Any], message: str, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        BackoffPolicy().replace(**changes)
    assert (str(caught.value), caught.value.field) == (f"invalid model: {message}", field)


@pytest.mark.parametrize("factor", ["1e999", "NaN", "Infinity", "-Infinity", "0.99", "1" + "0" * 400])
def test_a_factor_out_of_range_is_refused_in_json(factor: str) -> None:
    with pytest.raises(Invalid, match="backoff factor must be finite"):
        BackoffPolicy.from_json(f'{{"jitter":"full","firstMs":1,"maxMs":1,"factor":{factor}}}')


def test_backoff_edges_are_legal() -> None:
    policy = BackoffPolicy(first_ms=2**64 - 1, max_ms=2**64 - 1, factor=1)
    assert policy.factor == 1.0
    assert isinstance(policy.factor, float)
