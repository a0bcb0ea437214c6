"""The tables and plots of docs/performance.md, made of the results: the text around them is written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from benchmarks.aims import is_ours, ours, verdicts
from benchmarks.lab import quartiles
from benchmarks.plots import Bar, bars
from benchmarks.report import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.lab import Series
    from benchmarks.results import Results

__all__ = ["BLOCKS", "write"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/performance.md"
PLOTS = "performance"

_Rows = list[tuple[str, ...]]


def number(value: float) -> str:
    """With as many digits as are worth reading."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(one: Series) -> str:
    """The median, and from the first quartile to the third."""
    if len(one.values) == 1:
        return number(one.median)
    low, high = quartiles(one.values)
    return f"{number(one.median)} ({number(low)} to {number(high)})"


def _beside(mine: Series | None, other: Series) -> tuple[str, str]:
    """Ours over the other, and its spread; above 1 is better."""
    if mine is None or mine is other:
        return "", ""
    ratios = mine.over(other)
    if not ratios:
        return "", ""
    low, high = quartiles(ratios)
    return f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"


def _compared(found: Sequence[Series], mine: Series | None) -> _Rows:
    """A row a lane."""
    unit = found[0].unit if found else ""
    rows: _Rows = [("lane", f"{unit}, median (quartiles)", "ours over it", "quartiles", "how")]
    return rows + [(one.lane, spread(one), *_beside(mine, one), one.how) for one in found]


def _aims(results: Results) -> _Rows:
    rows: _Rows = [("work", "beside", "aim", "reached", "")]
    for one in verdicts(results):
        reached = "" if one.ratio is None else f"{one.ratio:.2f}"
        rows.append((one.work, one.beside, f"{one.aim:g}", reached, one.said))
    return rows


def _of(work: str, case: str) -> Callable[[Results], _Rows]:
    def rows(results: Results) -> _Rows:
        found = results.series(work, case)
        return _compared(found, ours(found)) if found else []

    return rows


def _cost(results: Results) -> _Rows:
    cases = (
        ("drain, CPU of the client", "client, CPU s per million tasks"),
        ("drain, CPU of the server", "server, CPU s per million tasks"),
        ("WAL of a task's life", "WAL of a task's life, bytes"),
        ("memory of the process, peak", "memory, peak MB"),
    )
    by_lane: dict[str, list[str]] = {}
    for place, (case, _) in enumerate(cases):
        for one in results.series("drain", case):
            by_lane.setdefault(one.lane, ["-"] * len(cases))[place] = spread(one)
    keeps = {one.lane: one.how for one in results.series("drain", "WAL of a task's life")}
    head = ("lane", *(title for _, title in cases), "keeps of a task that is done")
    return [head, *((lane, *cells, keeps.get(lane, "")) for lane, cells in by_lane.items())] if by_lane else []


def _latency(results: Results) -> _Rows:
    idle = ("idle, CPU of the worker", "idle, CPU of the server", "idle, WAL")
    costs = {case: {one.lane: number(one.median) for one in results.series("latency", case)} for case in idle}
    rows: _Rows = [
        (
            "lane",
            "p50, ms",
            "p95, ms",
            "p99, ms",
            "tasks",
            "worker, CPU s/min",
            "server, CPU s/min",
            "WAL, kB/min",
            "how",
        )
    ]
    for one in results.series("latency", "create to start, idle"):
        parts = quantiles(one.values, n=100, method="inclusive") if len(one.values) > 1 else list(one.values) * 99
        cells = (number(parts[percent - 1]) for percent in (50, 95, 99))
        spent = (costs[case].get(one.lane, "-") for case in idle)
        rows.append((one.lane, *cells, f"{len(one.values)}", *spent, one.how))
    return rows if len(rows) > 1 else []


def _hard(results: Results) -> _Rows:
    rows: _Rows = [("place", "lane", "of free", "quartiles", "tasks/s")]
    for case in ("backlog", "retained", "pinned xmin", "blocked"):
        rates = {one.lane: number(one.median) for one in results.series("hard", f"{case}, rate")}
        for one in results.series("hard", case):
            low, high = quartiles(one.values)
            rows.append((case, one.lane, f"{one.median:.2f}", f"{low:.2f} to {high:.2f}", rates.get(one.lane, "")))
    return rows if len(rows) > 1 else []


def _operations(results: Results) -> _Rows:
    section = results.works.get("operations")
    if section is None:
        return []
    rows: _Rows = [
        ("operation", "ours, µs", "bare, µs", "ratio", "quartiles", "ours, CPU", "bare, CPU", "beside", "besides")
    ]
    for case in dict.fromkeys(one.case for one in section.series if "CPU" not in one.case):
        mine, bare = results.series("operations", case)
        cpu = [number(one.median) for one in results.series("operations", f"{case}, CPU of the client")]
        rows.append((case, number(mine.median), number(bare.median), *_beside(mine, bare), *cpu, bare.how, mine.how))
    return rows


def _pages(results: Results) -> _Rows:
    cases = ("page, first", "page, last", "page, first, failed", "page, last, failed")
    found = {case: {one.lane: one for one in results.series("pages", case)} for case in cases}
    if not found[cases[0]]:
        return []
    base = found[cases[0]]["unfiltered"].median
    rows: _Rows = [("page", "selector", "first", "last", "first, failed", "last, failed", "at most, over unfiltered")]
    for lane, one in found[cases[0]].items():
        there = [found[case].get(lane) for case in cases]
        most = max(page.median for page in there if page is not None)
        cells = ("-" if page is None else spread(page) for page in there)
        rows.append((lane, f"`{one.how}`" if one.how else "", *cells, f"{most / base:.1f}"))
    return rows


def _feed(results: Results) -> _Rows:
    section = results.works.get("feed")
    if section is None:
        return []
    rows: _Rows = [("what", "lane", "median (quartiles)", "unit", "with events over without", "quartiles")]
    for one in section.series:
        other = results.series("feed", one.case)[-1]
        beside = _beside(one, other) if other.lane == "without" else ("", "")
        rows.append((one.case.removeprefix("feed, "), one.lane, spread(one), one.unit, *beside))
    return rows


def _about(results: Results) -> _Rows:
    """Each thing that is to be known, with the works that it is true of unless that is all of them."""
    told: dict[tuple[str, str], list[str]] = {}
    for name, one in results.all():
        for fact in (*one.about.items(), ("sizes", ", ".join(f"{key} {value}" for key, value in one.sizes.items()))):
            told.setdefault(fact, []).append(name)
        told["measured", f"{one.at} UTC, in {one.took_s:.0f} s"] = [name]
    rows: _Rows = [("what", "which", "of")]
    rows += [(*fact, "all" if len(of) == len(results.works) else ", ".join(of)) for fact, of in sorted(told.items())]
    return rows if len(rows) > 1 else []


def _notes(results: Results) -> str:
    return "\n".join(f"- {name}: {note}" for name, section in results.all() for note in section.notes)


BLOCKS: dict[str, Callable[[Results], _Rows]] = {
    "aims": _aims,
    "create-one": _of("create", "create one, 1 client"),
    "create-crowd": _of("create", "create one, 16 clients"),
    "create-many": _of("create", "create 20k at once"),
    "drain": _of("drain", "drain 20k"),
    "cost": _cost,
    "latency": _latency,
    "hard": _hard,
    "operations": _operations,
    "pages": _pages,
    "feed": _feed,
    "about": _about,
}

# The file, what it shows, and of what.
_PLOTS = (
    ("create-one", "Create one by one, 1 client: tasks a second", "create", "create one, 1 client"),
    ("create-crowd", "Create one by one, 16 clients: tasks a second", "create", "create one, 16 clients"),
    ("create-many", "Create 20,000 at once: tasks a second", "create", "create 20k at once"),
    ("drain", "Work off 20,000 no-op tasks: tasks a second", "drain", "drain 20k"),
    ("wal", "Write-ahead log of a task's life: bytes", "drain", "WAL of a task's life"),
    ("latency", "From create to start, idle: ms", "latency", "create to start, idle"),
)


def table(rows: _Rows, *, markdown: bool) -> str:
    """Rows with figures to the right."""
    if not markdown:
        return layout(rows, rule=None)
    figures = re.compile(r"[\d,.]+( \([\d,.]+ to [\d,.]+\))?|[\d,.]+ s|-|")
    columns = zip(*rows[1:], strict=True)
    rule = "|".join("---:" if all(figures.fullmatch(cell) for cell in column) else "---" for column in columns)
    return layout([tuple(cell.replace("|", "\\|") for cell in row) for row in rows], rule=f"|{rule}|")


def terminal(results: Results, works: Sequence[str]) -> str:
    """What was measured, for who waits: every series of these works."""
    rows: _Rows = [("case", "lane", "median (quartiles)", "unit", "ours over it", "quartiles")]
    for name in works:
        for one in results.works[name].series if name in results.works else ():
            mine = ours(results.series(name, one.case))
            rows.append((one.case, one.lane, spread(one), one.unit, *_beside(mine, one)))
    return layout(rows, rule=None)


def write(results: Results, page: Path = PAGE) -> None:
    """Put tables and plots in place: a table stands between `<!-- lab: NAME -->` and `<!-- end -->`."""
    text = page.read_text("utf-8")
    made = {name: table(rows, markdown=True) for name, make in BLOCKS.items() if (rows := make(results))}
    made["notes"] = _notes(results)

    def block(found: re.Match[str]) -> str:
        name = found[1]
        if name not in {*BLOCKS, "notes"}:
            raise ValueError(f"{page.name} asks for {name}, which there is not")
        return f"<!-- lab: {name} -->\n\n{made.get(name) or 'Not measured yet.'}\n\n<!-- end -->"

    page.write_text(re.sub(r"<!-- lab: ([\w-]+) -->.*?<!-- end -->", block, text, flags=re.DOTALL), "utf-8")
    folder = page.parent / PLOTS
    folder.mkdir(exist_ok=True)
    for name, drawing in drawings(results):
        (folder / f"{name}.svg").write_text(drawing, "utf-8")


def drawings(results: Results) -> Iterator[tuple[str, str]]:
    """The plots: a file's name, and what is in it."""
    for name, title, work, case in _PLOTS:
        rows = [
            Bar(one.lane, one.median, *quartiles(one.values), number(one.median), is_ours(one.lane))
            for one in results.series(work, case)
        ]
        if rows:
            yield (
                name,
                bars(title, sorted(rows, key=lambda row: row.value, reverse=work != "latency" and name != "wal")),
            )
