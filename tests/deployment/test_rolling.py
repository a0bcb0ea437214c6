"""The schema moves under an application that does not stop."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deployment.rolling import run, summary, waits

if TYPE_CHECKING:
    from collections.abc import Callable


def test_up_and_down_through_the_window_under_workers_and_creators(
    record_property: Callable[[str, object], None],
) -> None:
    """An operation that fails ends its process, and the run with it; what was lost or done twice is a violation."""
    report = run(seconds=0, seed=11)
    print(summary(report))  # noqa: T201 - what it came by, when it fails
    record_property("deployment", waits(report))
    assert [str(violation) for violation in report.violations] == []
    assert (report.done["up"], report.done["down"]) == (4, 2)
    # There was something to disturb, before and between the moves.
    events = Counter(event.type for event in report.history.events)
    assert all(events[kind] for kind in ("created", "started", "finished", "admitted"))
    assert {"create", "create_many", "claim", "finish_many", "list"} <= set(report.waits)
