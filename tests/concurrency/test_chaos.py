"""Real processes on a server of their own, killed, frozen and cut off; see `chaos.run`."""

from __future__ import annotations

from collections import Counter

from chaos.run import run


def test_the_history_of_a_registry_under_attack_has_no_violation() -> None:
    report = run(seconds=20, seed=7)
    print(report)  # noqa: T201 - what it came by, when it fails
    assert [str(violation) for violation in report.violations] == []
    # It was an attack, and there was something to attack.
    assert set(report.done) == {"kill", "pause", "terminate", "restart"}
    events = Counter(event.type for event in report.history.events)
    assert all(events[kind] for kind in ("admitted", "cancelRequested", "deleted", "refused", "specChanged"))
    assert len(report.history.tasks) > 100
