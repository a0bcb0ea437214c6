"""The benchmarks run, each once: their replay notices when the store's statements no longer fit it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.listing import SELECTORS
from solti_store.rules.reports import REPORTS

ROOT = Path(__file__).resolve().parents[2]

OPERATIONS = [
    "create",
    "create_many, 10 at once",
    "get",
    "replace",
    "update",
    "claim + finish",
    "claim + finish, 100 at once",
]


def benchmarks(*arguments: str, module: str = "benchmarks") -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_operation_runs_beside_its_baseline(database_url: str) -> None:
    about, _, head, line, *rows = benchmarks("--once", "--markdown", "--url", database_url).splitlines()
    assert re.match(r"PostgreSQL \d+.*, fsync=(on|off), ", about)
    assert head.startswith("| operation | ours | bare | ratio |")
    assert line.startswith("|---|")
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == OPERATIONS
    for row in rows:
        ratio, spread = row.split(" | ")[3:5]
        assert float(ratio) > 0
        assert spread == f"{ratio} to {ratio}"


def test_the_plain_table_names_what_was_asked_for(database_url: str) -> None:
    about, blank, head, row = benchmarks("--once", "--only", "get", "--url", database_url).splitlines()
    assert "full_page_writes=" in about
    assert blank == ""
    assert head.split()[:4] == ["operation", "ours", "bare", "ratio"]
    assert row.startswith("get ")


def test_every_page_of_the_listing_is_measured_and_explained(database_url: str) -> None:
    arguments = ("--tasks", "6000", "--rounds", "1", "--url", database_url)
    rows = benchmarks(*arguments, "--markdown", module="benchmarks.listing").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert cells[0][0] == "page"
    assert len(cells) == 2 + 2 + 4 * len(SELECTORS)
    assert {row[0] for row in cells[2:]} == {"unfiltered", *SELECTORS}
    assert all(float(row[4].removesuffix(" ms")) > 0 for row in cells[2:])
    plans = benchmarks(*arguments, "--only", "quarter", "--explain", module="benchmarks.listing")
    assert plans.count("force_generic_plan") == plans.count("force_custom_plan") > 6
    # Even of a table so small that a scan of it would do.
    assert "!!!" not in plans


def test_claims_are_measured_in_every_hard_place(database_url: str) -> None:
    rows = benchmarks("--once", "--markdown", "--url", database_url, module="benchmarks.claims").splitlines()
    assert len(rows) == 2 + 1 + 1 + 2 + 2
    assert all(float(row.split(" | ")[3]) > 0 for row in rows[2:])


def test_events_are_measured_beside_a_store_without_them(database_url: str) -> None:
    *rows, _, read = benchmarks("--once", "--markdown", "--url", database_url, module="benchmarks.events").splitlines()
    assert all(float(row.split(" | ")[3]) > 0 for row in rows[2:])
    assert int(read.split()[0].replace(",", "")) > 600


def test_peers_that_are_not_installed_are_left_out(database_url: str) -> None:
    nowhere = ("--python", "/nonexistent/python", "--node-modules", "/nonexistent")
    head, row = benchmarks(
        "--once", "--only", "pgqueuer", *nowhere, "--url", database_url, module="benchmarks.peers"
    ).splitlines()
    assert head.split()[:2] == ["queue", "processes"]
    assert row.split()[:2] == ["solti-store", "1"]


def test_latency_is_measured_with_what_polling_costs(database_url: str) -> None:
    head, row = benchmarks("--once", "--url", database_url, module="benchmarks.latency").splitlines()
    assert head.startswith("poll, ms")
    assert float(row.split()[1]) > 0


def test_every_report_is_measured_and_explained(database_url: str) -> None:
    arguments = ("--tasks", "3000", "--rounds", "1", "--explain", "--url", database_url)
    lines = benchmarks(*arguments, module="benchmarks.reports").splitlines()
    assert lines[0].startswith("| report | asked | rows | median |")
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines[2 : lines.index("--- tasks ")]} == set(REPORTS)
    assert sum(line.startswith("Execution Time") for line in lines) == sum(line.startswith("--- ") for line in lines)
