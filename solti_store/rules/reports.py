"""Which reports there are, and how each is read and drawn; what its columns mean is said by the views themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["PAGE", "REPORTS", "VERSION", "Chart", "Report"]

#: The version of the views that this code reads. A test holds views and version together.
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Chart:
    """A bar for each of something.

    Attributes:
        of: The columns that name the bar.
        value: The column that says how long it is; None counts rows.
        how: What to do with the values of rows that share a bar.
        in_order: Whether the bars stay in order of their names, as times do, or go by length.
    """

    of: tuple[str, ...]
    value: str | None = None
    how: Literal["sum", "max"] = "sum"
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """A view, as a report.

    Attributes:
        name: Its name on the command line; the view's, with dashes.
        summary: What it shows.
        order: The order of its rows, in SQL.
        shown: The columns that a table for people has; data has all.
        chart: How it is drawn.
        time: The column that `--since` is about, if there is one.
        since: What `--since` is unless it is given: without it, the report would read all there is.
        has_labels: Whether a selector can be applied.
    """

    name: str
    summary: str
    order: tuple[str, ...]
    shown: tuple[str, ...]
    chart: Chart
    time: str | None = None
    since: str | None = None
    has_labels: bool = False

    @property
    def view(self) -> str:
        """The view's name."""
        return self.name.replace("-", "_")


# At 100,000 runs a day each of these is within a second; a week is, once it has been rolled up.
_WEEK, _SOME_DAYS, _TODAY = "7d", "3d", "1d"
_COUNTS = ("attempts", "succeeded", "failed", "timeout", "canceled", "run_seconds")

REPORTS: Final = {
    report.name: report
    for report in (
        Report(
            "tasks",
            "Tasks, the latest change first.",
            ("updated_at DESC", "seq DESC"),
            ("id", "slot", "kind", "program", "state", "phase", "attempt", "updated_at", "wait_seconds", "error"),
            Chart(("state",)),
            time="updated_at",
            has_labels=True,
        ),
        Report(
            "attempts",
            "Attempts, those that run first, then the latest to end.",
            ("finished_at DESC", "seq DESC", "attempt DESC"),
            ("task", "attempt", "outcome", "agent", "started_at", "wait_seconds", "run_seconds", "exit_code", "error"),
            Chart(("outcome",)),
            time="finished_at",
            has_labels=True,
        ),
        Report(
            "slots",
            "Slots with an owner or a queue, the longest queue first.",
            ("depth DESC", "slot"),
            ("slot", "owner", "owner_state", "owner_agent", "depth", "oldest_wait_seconds"),
            Chart(("slot",), "depth"),
        ),
        Report(
            "agents",
            "Workers, in the order in which they started.",
            ("seq",),
            ("id", "state", "running", "capacity", "kinds", "labels", "registered_at", "silent_seconds"),
            Chart(("id",), "running"),
            has_labels=True,
        ),
        Report(
            "outcomes",
            "What attempts came to, by day, slot and kind.",
            ("day DESC", "attempts DESC", "slot", "kind"),
            ("day", "slot", "kind", *_COUNTS),
            Chart(("day",), "attempts", in_order=True),
            time="day",
            since=_SOME_DAYS,
        ),
        Report(
            "outcome-trend",
            "The same, of days that are rolled up as well, which outlive their runs.",
            ("day DESC", "attempts DESC", "slot", "kind"),
            ("day", "slot", "kind", *_COUNTS),
            Chart(("day",), "attempts", in_order=True),
            time="day",
            since=_WEEK,
        ),
        Report(
            "outcomes-by-label",
            "What attempts came to, by day and label.",
            ("day DESC", "attempts DESC", "label_key", "label_value"),
            ("day", "label_key", "label_value", *_COUNTS),
            Chart(("label_key", "label_value"), "attempts"),
            time="day",
            since=_TODAY,
        ),
        Report(
            "durations",
            "How long attempts ran and tasks waited, by day, slot and kind.",
            ("day DESC", "attempts DESC", "slot", "kind"),
            (
                *("day", "slot", "kind", "attempts", "run_p50_seconds", "run_p95_seconds", "run_max_seconds"),
                *("wait_p50_seconds", "wait_p95_seconds", "wait_max_seconds"),
            ),
            Chart(("slot", "kind"), "run_p95_seconds", how="max"),
            time="day",
            since=_SOME_DAYS,
        ),
        Report(
            "duration-trend",
            "The same from buckets, of days that are rolled up as well.",
            ("day DESC", "attempts DESC", "slot", "kind", "measure"),
            (
                *("day", "slot", "kind", "measure", "attempts", "p50_seconds", "p90_seconds", "p95_seconds"),
                *("p99_seconds", "max_seconds"),
            ),
            Chart(("slot", "kind", "measure"), "p95_seconds", how="max"),
            time="day",
            since=_WEEK,
        ),
        Report(
            "duration-buckets",
            "How many attempts ran and tasks waited about how long: counts that may be added up.",
            ("day DESC", "slot", "kind", "measure", "at_most_seconds"),
            ("day", "slot", "kind", "measure", "at_most_seconds", "attempts"),
            Chart(("measure", "at_most_seconds"), "attempts", in_order=True),
            time="day",
            since=_TODAY,
        ),
        Report(
            "retry-cost",
            "What failures cost and retries saved, by day, slot and kind.",
            ("day DESC", "lost_seconds DESC", "slot", "kind"),
            (
                *("day", "slot", "kind", "attempts", "unsuccessful", "retries", "recovered"),
                *("run_seconds", "lost_seconds", "lost_share"),
            ),
            Chart(("slot", "kind"), "lost_seconds"),
            time="day",
            since=_TODAY,
        ),
        Report(
            "retry-cost-trend",
            "The same, of days that are rolled up as well.",
            ("day DESC", "lost_seconds DESC", "slot", "kind"),
            (
                *("day", "slot", "kind", "attempts", "unsuccessful", "retries", "recovered"),
                *("run_seconds", "lost_seconds", "lost_share"),
            ),
            Chart(("day",), "lost_seconds", in_order=True),
            time="day",
            since=_WEEK,
        ),
        Report(
            "failures",
            "Attempts that failed or took too long, by day and error.",
            ("day DESC", "attempts DESC", "error"),
            ("day", "attempts", "tasks", "agents", "last_at", "sample_task", "error"),
            Chart(("error",), "attempts"),
            time="day",
            since=_SOME_DAYS,
        ),
        Report(
            "failure-trend",
            "The most frequent of them, of days that are rolled up as well.",
            ("day DESC", "attempts DESC", "error"),
            ("day", "attempts", "tasks", "first_at", "last_at", "error"),
            Chart(("day",), "attempts", in_order=True),
            time="day",
            since=_WEEK,
        ),
        Report(
            "throughput",
            "What attempts came to in each minute of the last 24 hours, the latest first.",
            ("minute DESC",),
            ("minute", *_COUNTS),
            Chart(("minute",), "attempts", in_order=True),
            time="minute",
            since="1h",
        ),
        Report(
            "throughput-trend",
            "What attempts came to in each hour, of days that are rolled up as well.",
            ("hour DESC",),
            ("hour", *_COUNTS),
            Chart(("hour",), "attempts", in_order=True),
            time="hour",
            since=_WEEK,
        ),
        Report(
            "phase-spans",
            "Stays of tasks in phases, the latest first; reads all events.",
            ("entered_at DESC", "seq DESC"),
            ("task", "phase", "entered_at", "left_at", "seconds"),
            Chart(("phase",), "seconds"),
            time="entered_at",
        ),
        Report(
            "time-in-phase",
            "How long the tasks of each slot stayed in each phase, by day.",
            ("day DESC", "total_seconds DESC", "slot", "phase"),
            ("day", "slot", "phase", "stays", "total_seconds", "p50_seconds", "p95_seconds", "max_seconds"),
            Chart(("phase",), "total_seconds"),
            time="day",
            since=_TODAY,
        ),
    )
}

#: The reports on the page: what goes on now, then what the last days were like.
PAGE: Final = ("throughput", "slots", "agents", "outcome-trend", "durations", "failures", "retry-cost")
