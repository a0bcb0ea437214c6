"""`python -m benchmarks`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import cases, feed, hard, listing, queues, reports
from benchmarks.arena import server, settings
from benchmarks.install import Environment, environment
from benchmarks.lab import FULL, ONCE, QUICK, Lab, Sizes, Work
from benchmarks.page import PAGE, terminal, write
from benchmarks.results import Results, Section, machine

if TYPE_CHECKING:
    from collections.abc import Sequence

# The quick ones first: of a run that is cut short there is most. What leaves most behind in caches and files is last.
WORKS: tuple[Work, ...] = (
    *queues.WORKS,
    *cases.WORKS,
    *feed.WORKS,
    *hard.WORKS,
    *listing.WORKS,
    *reports.WORKS,
)
_SAID_CHARS = 300
JSON = PAGE.with_suffix(".json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep the figures, and write the page."""
    given = _parsed(arguments)
    # So that the server and the peers end as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    path = given.json or (None if given.quick or given.once else JSON)
    if given.page:
        write(Results.read(given.json or JSON))
        return 0
    sizes = _sizes(given)
    wanted = [work for work in WORKS if work.name in given.only] if given.only else [w for w in WORKS if w.by_default]
    peers = None if given.no_peers else _environment(given.peers_in)
    results = Results.read(path)
    failed = False
    with server(given.url) as url:
        about = machine(settings(url), peers=peers is not None)
        for work in wanted:
            lab = Lab(url, peers, sizes, given.peer, keep=given.keep, explain=given.explain)
            failed |= not run(work, lab, results, about, resume=given.resume)
    print(terminal(results, [work.name for work in wanted]))
    if path == JSON:
        write(results)
    return int(failed)


def run(work: Work, lab: Lab, results: Results, about: dict[str, str], *, resume: bool) -> bool:
    """Measure one work and keep what comes of it; whether it came to its end."""
    sizes = asdict(lab.sizes)
    known = results.works.get(work.name)
    if resume and known is not None and known.complete and known.sizes == sizes:
        print(f"{work.name}: measured {known.at}", file=sys.stderr, flush=True)
        return True
    print(f"{work.name}: {work.about}", file=sys.stderr, flush=True)
    began, at = time.perf_counter(), f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    section = Section(at, 0.0, sizes, about, [], lab.notes)
    try:
        section.series.extend(work.run(lab))
    except Exception as error:  # noqa: BLE001 - the other works can do without this one
        section.complete = False
        lab.notes.append(f"ended early: {type(error).__name__}: {str(error)[:_SAID_CHARS]}")
        print(lab.notes[-1], file=sys.stderr, flush=True)
    section.took_s = round(time.perf_counter() - began, 1)
    results.add(work.name, section)
    return section.complete


def _sizes(given: argparse.Namespace) -> Sizes:
    sizes = ONCE if given.once else QUICK if given.quick else FULL
    if given.rounds:
        sizes = replace(sizes, rounds=given.rounds, turns=3 * given.rounds, pages=3 * given.rounds)
    return replace(sizes, million=given.million) if given.million else sizes


def _environment(folder: Path | None) -> Environment | None:
    try:
        return environment(folder)
    except (RuntimeError, OSError) as error:
        print(f"the peers are left out: {error}", file=sys.stderr, flush=True)
        return None


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The store, beside other queues and beside bare psycopg. "
        + " ".join(f"{work.name}: {work.about}{'' if work.by_default else ' (only if named)'}." for work in WORKS),
    )
    parser.add_argument("--only", choices=names, action="append", help="this work; may be repeated")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="WORD", help="only peers with this in their name"
    )
    parser.add_argument("--no-peers", action="store_true", help="install no peers, measure this project alone")
    parser.add_argument("--quick", action="store_true", help="a look at everything, in a few minutes; kept nowhere")
    parser.add_argument("--once", action="store_true", help="one of each: do they run at all? Kept nowhere")
    parser.add_argument("--rounds", type=int, help=f"turns of each lane, {FULL.rounds} if not given")
    parser.add_argument("--million", type=int, metavar="N", help=f"tasks where there are many, {FULL.million:,}")
    parser.add_argument("--json", type=Path, help=f"keep the figures in this file, not in docs/{JSON.name}")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has, in the same sizes")
    parser.add_argument("--page", action="store_true", help=f"measure nothing, write docs/{PAGE.name} from the figures")
    parser.add_argument("--url", help="a server where databases can be created; without one a private one is started")
    parser.add_argument("--peers-in", type=Path, metavar="FOLDER", help="where the peers are, or are to be installed")
    parser.add_argument(
        "--keep", metavar="NAME", help="of pages or reports: keep the database, or use it if it is there"
    )
    parser.add_argument("--explain", action="store_true", help="of pages and reports: print the plans as well")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
