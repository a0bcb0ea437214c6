"""The laboratory runs, each work once: its replay notices when the store's statements no longer fit it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import WORKS, run
from benchmarks.aims import verdicts
from benchmarks.install import Environment
from benchmarks.lab import ONCE, QUICK, Lab, Series, Work
from benchmarks.lanes import PEERS
from benchmarks.listing import SELECTORS
from benchmarks.page import BLOCKS, PAGE, write
from benchmarks.queues import creating
from benchmarks.results import Results, Section

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]

# What each work has to have measured, among other things.
CASES = {
    "create": {"create one, 1 client", "create one, 16 clients", "create 20k at once"},
    "drain": {"drain 20k", "drain, CPU of the client", "WAL of a task's life", "memory of the process, peak"},
    "latency": {"create to start, idle", "idle, WAL"},
    "operations": {"create", "create_many", "get", "replace", "update", "claim + finish, 100 at once"},
    "feed": {"feed, create", "feed, read from the beginning", "feed, create to seen"},
    "hard": {"backlog", "retained", "pinned xmin", "blocked"},
    "reports": {"report"},
}


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--once", "--no-peers", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# Pages are read below.
@pytest.mark.parametrize("work", [work.name for work in WORKS if work.name != "pages"])
def test_every_work_measures_what_it_says(work: str, database_url: str, tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    done = benchmarks("--only", work, "--url", database_url, "--json", str(kept))
    assert done.returncode == 0, done.stderr
    section = Results.read(kept).works[work]
    assert section.complete
    assert {one.case for one in section.series} >= CASES[work]
    assert all(value >= 0 for one in section.series for value in one.values)
    assert re.search(r"PostgreSQL \d+.*, fsync=(on|off), ", section.about["server"])
    # Each of its figures is shown to who waits.
    assert all(one.case in done.stdout and one.lane in done.stdout for one in section.series)


def test_pages_are_measured_and_explained_without_a_scan_of_a_whole_table(database_url: str, tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    arguments = ("--only", "pages", "--million", "6000", "--explain", "--url", database_url, "--json", str(kept))
    done = benchmarks(*arguments)
    assert done.returncode == 0, done.stderr
    found = Results.read(kept)
    assert all(
        {one.lane for one in found.series("pages", f"page, {where}")} >= set(SELECTORS)
        for where in ("first", "last", "first, failed", "last, failed")
    )
    assert done.stdout.count("force_generic_plan") == done.stdout.count("force_custom_plan") > 6
    # Even of a table so small that a scan of it would do.
    assert "!!!" not in done.stdout


def test_a_work_that_fails_keeps_what_it_had_and_is_measured_again(tmp_path: Path) -> None:
    found, lab = Results(tmp_path / "results.json"), Lab("", None, ONCE)
    fails = True

    def measure(_: Lab) -> Iterator[Series]:
        yield Series("one", "solti-store", "s", [1.0])
        if fails:
            raise RuntimeError("no more")
        yield Series("two", "solti-store", "s", [1.0])

    work = Work("some", "", measure)
    assert not run(work, lab, found, {}, resume=True)
    kept = Results.read(found.path).works["some"]
    assert [one.case for one in kept.series] == ["one"]
    assert kept.notes == ["ended early: RuntimeError: no more"]
    fails = False
    assert run(work, replace(lab, notes=[]), found, {}, resume=True)
    assert len(Results.read(found.path).works["some"].series) == 2
    fails = True
    # It is there, and complete.
    assert run(work, lab, found, {}, resume=True)
    other = replace(lab, sizes=QUICK)
    assert not run(work, other, found, {}, resume=True)


def test_peers_that_do_not_start_are_left_out_by_name(database_url: str) -> None:
    nowhere = Environment(Path("/nonexistent/python"), Path("/nonexistent"))
    lab = Lab(database_url, nowhere, ONCE, ["pgqueuer"])
    assert {one.lane for one in creating(lab)} == {"solti-store", "solti-store, from JSON"}
    (note,) = lab.notes
    assert note.startswith("pgqueuer is left out: ")


def series(case: str, *medians: tuple[str, float], less: bool = False) -> list[Series]:
    return [Series(case, lane, "ms" if less else "tasks/s", [value], less=less) for lane, value in medians]


def results(**works: list[Series]) -> Results:
    sections = {name: Section("2026-01-01 00:00", 1.0, {}, {"server": "PostgreSQL 18"}, w) for name, w in works.items()}
    return Results(None, sections)


def test_an_aim_is_met_or_missed_by_how_much() -> None:
    found = results(
        create=series("create one, 1 client", ("solti-store", 1300), ("pgqueuer", 1000), ("dbos", 400)),
        drain=[
            *series("drain 20k", ("solti-store", 10), ("solti-store's worker", 15), ("pgqueuer", 10), ("pg-boss", 40)),
            # Graphile-worker, the leanest, keeps nothing.
            *series("WAL of a task's life", ("solti-store", 20), ("dbos", 30), ("graphile-worker", 1), less=True),
        ],
        pages=[
            *series("page, first", ("unfiltered", 2), ("half", 3), less=True),
            *series("page, last", ("half", 20), less=True),
        ],
    )
    said = {(one.work.split(";")[0], one.beside): (one.ratio, one.said) for one in verdicts(found)}
    assert said["create one", "fastest peer: pgqueuer"] == (1.3, "met")
    assert said["drain 20k", "fastest Python peer: pgqueuer"] == (1.5, "missed by 25 %")
    assert said["WAL of a task's life", "leanest peer that keeps history: dbos"] == (1.5, "met")
    assert said["page with any selector", "unfiltered page"] == (0.1, "missed by 50 %")
    assert said["create 20k", "fastest peer"] == (None, "not measured")


def test_the_page_is_made_of_the_figures(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    shutil.copy(PAGE, page)
    assert set(re.findall(r"<!-- lab: ([\w-]+) -->", page.read_text())) == {*BLOCKS, "notes"}
    found = results(drain=series("drain 20k", ("solti-store", 1234), ("pgqueuer", 617)))
    write(found, page)
    text = page.read_text()
    assert "| pgqueuer | 617 | 2.00 | 2.00 to 2.00 |" in text
    assert "pgqueuer</text>" in (tmp_path / "performance/drain.svg").read_text()
    write(found, page)
    assert page.read_text() == text


def test_the_page_shows_the_figures_that_are_kept(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    shutil.copy(PAGE, page)
    write(Results.read(PAGE.with_suffix(".json")), page)
    assert page.read_text() == PAGE.read_text()


def test_the_features_are_said_of_the_versions_that_are_measured() -> None:
    from benchmarks.install import NODE, PYTHON  # noqa: PLC0415

    named = {
        "PgQueuer": PYTHON["pgqueuer"],
        **{n: PYTHON[n] for n in ("procrastinate",)},
        "DBOS": PYTHON["dbos"],
        **NODE,
    }
    text = PAGE.read_text()
    assert all(f"{name} {version}" in text for name, version in named.items() if name != "pg")
    assert {peer.name for peer in PEERS} >= {"pgqueuer", "procrastinate", "dbos", "graphile-worker", "pg-boss"}
