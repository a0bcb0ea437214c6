"""What pages cost, by selector, beside the unfiltered page in the same run."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from benchmarks.arena import Arena, arena
from benchmarks.lab import Lab, Series, Work, say
from benchmarks.replay import record
from solti_store import AdmissionPolicy, Subprocess, TaskPhase, TaskQuery, TaskSpec
from solti_store.model import Selector
from solti_store.ops import cursor

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCH = 10_000

SELECTORS: dict[str, str] = {
    "half": "env=prod",
    "quarter": "tier=gold",
    "one in 100": "shard=7",
    "one in 1,000": "customer=c7",
    "one in 10,000": "incident=true",
    "absent value": "env=qa",
    "absent key": "nosuch",
    "key of 2 %": "canary",
    "key of all": "env",
    "unequal": "env!=prod",
    "not in, half left": "env notin (prod)",
    "not in, a fifth left": "env notin (prod,staging)",
    "not in, none left": "env notin (prod,staging,dev)",
    "without a rare key": "!canary",
    "without a common key": "!env",
    "30 values": f"customer in ({','.join(f'c{number}' for number in range(30))})",
    "number, half": "prio>49",
    "number, one in 100": "prio>98",
    "number, none": "prio>100",
    "number, between": "prio>10,prio<13",
    "two, half and quarter": "env=prod,tier=gold",
    "two, correlated": "region=r1,zone=r1-a",
    "two, contradictory": "region=r1,zone=r2-a",
    "three": "tier=gold,customer in (c1,c2,c3),!canary",
    "four": "env in (prod,staging),tier notin (bronze),canary,prio>50",
}


def labels(number: int, dice: random.Random) -> dict[str, str]:
    """What a registry's labels look like: keys with 3 values, 1,000, every share from a half to one in 10,000."""
    region = dice.randrange(1, 5)
    result = {
        "env": dice.choices(("prod", "staging", "dev"), (50, 30, 20))[0],
        "tier": dice.choices(("gold", "silver", "bronze"), (25, 25, 50))[0],
        "customer": f"c{dice.randrange(1000)}",
        "region": f"r{region}",
        "zone": f"r{region}-{dice.choice('abc')}",
        "shard": str(dice.randrange(100)),
        "prio": str(dice.randrange(100)),
    }
    if dice.random() < 0.02:
        result["canary"] = "true"
    if number % 10_000 == 77:
        result["incident"] = "true"
    if number % 10 == 3:
        result["build"] = f"b{number}"
    return result


def build(field: Arena, tasks: int) -> float:
    """Create the tasks, spread them over the phases, and let the index of labels know them.

    Returns:
        What the index took, in seconds.
    """
    dice = random.Random(20)  # noqa: S311 - the same registry each time
    command = Subprocess.command("make", "-j2", "target", env={"STAGE": "build"})
    for start in range(0, tasks, _BATCH):
        field.store.create_many(
            [
                (
                    f"task-{number}",
                    TaskSpec.builder(f"slot-{number % 100}", command, 300_000)
                    .admission(AdmissionPolicy.QUEUE)
                    .labels(labels(number, dice))
                    .build(),
                )
                for number in range(start, min(start + _BATCH, tasks))
            ]
        )
    # As after some weeks: most are done, at moments that have little to do with when they were created.
    field.single.execute("SELECT setseed(0.2)")
    field.single.execute(
        """
        UPDATE solti.task_status AS s SET phase = p.phase, updated_at = s.updated_at + random() * interval '1 hour',
               due_at = CASE WHEN p.phase = 'pending' THEN s.due_at END,
               queue_key = CASE WHEN p.phase = 'pending' THEN s.queue_key END,
               attempt = CASE WHEN p.phase = 'pending' THEN 0 ELSE 1 END
        FROM (SELECT seq, CASE WHEN dice < 0.6 THEN 'succeeded' WHEN dice < 0.85 THEN 'pending'
                               WHEN dice < 0.95 THEN 'canceled' ELSE 'failed' END AS phase
              FROM (SELECT seq, random() AS dice FROM solti.task_status) AS thrown) AS p
        WHERE p.seq = s.seq
        """
    )
    began = time.perf_counter()
    field.store.index_labels()
    took = time.perf_counter() - began
    for table in ("tasks", "task_status", "label_postings", "label_segments", "label_index"):
        field.single.execute(sql.SQL("VACUUM (ANALYZE) solti.{}").format(sql.Identifier(table)))
    return took


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is measured."""

    name: str
    selector: str
    where: str
    phase: str
    query: TaskQuery


def pages(field: Arena) -> Iterator[Page]:
    """The unfiltered page first, then each selector's first and last page, without and with a phase."""
    yield Page("unfiltered", "", "first", "", TaskQuery())
    yield Page("unfiltered", "", "last", "", _last(field, TaskQuery()))
    for name, text in SELECTORS.items():
        for phase in (None, TaskPhase.FAILED):
            query = TaskQuery(selector=Selector.parse(text), phases=frozenset({phase} if phase else ()))
            yield Page(name, text, "first", phase or "", query)
            yield Page(name, text, "last", phase or "", _last(field, query))


def _last(field: Arena, query: TaskQuery) -> TaskQuery:
    """The query for its last full page, reached as paging would reach it."""
    backwards = field.store.list(query.replace(descending=True, limit=query.limit + 1))
    if len(backwards) <= query.limit:
        return query
    before = backwards.items[-1].metadata
    ((seq,),) = field.single.execute("SELECT seq FROM solti.tasks WHERE id = %s", [before.id]).fetchall()
    at = cursor.Position(before.updated_at.datetime, seq)
    return query.replace(cursor=cursor.encode(query, at))


def measure(field: Arena, wanted: list[Page], rounds: int) -> dict[int, list[float]]:
    """Seconds of each page in each round; the rounds interleave the pages."""
    took: dict[int, list[float]] = {number: [] for number in range(len(wanted))}
    # Python's collector looks at every object of every module now and then, 30 ms each time: not the store's doing.
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for number, page in enumerate(wanted):
            began = time.perf_counter()
            field.store.list(page.query)
            took[number].append(time.perf_counter() - began)
    return took


def explain(field: Arena, page: Page) -> str:
    """The plans of a page's statements, generic and custom; a scan of a whole table is called out."""
    lines = [f"--- {page.name}: {page.selector or 'everything'} {page.phase} {page.where}"]
    connection = field.several
    for statement in record(lambda: field.store.list(page.query)).statements:
        # Only a prepared statement can have a generic plan.
        psycopg.RawCursor(connection).execute(statement.sql, list(statement.parameters.values()), prepare=True)
        ((name, text),) = connection.execute(
            "SELECT name, statement FROM pg_prepared_statements ORDER BY prepare_time DESC LIMIT 1"
        ).fetchall()
        lines += ["", *text.splitlines()]
        values = sql.SQL(", ").join(sql.Literal(_plain(value)) for value in statement.parameters.values())
        call = sql.SQL("({})").format(values) if statement.parameters else sql.SQL("")
        for mode in ("force_generic_plan", "force_custom_plan"):
            connection.execute(sql.SQL("SET LOCAL plan_cache_mode = {}").format(sql.Literal(mode)))
            asked = sql.SQL("EXPLAIN (ANALYZE, BUFFERS) EXECUTE {}{}").format(sql.Identifier(name), call)
            lines.append(f"{mode}:")
            for (line,) in connection.execute(asked).fetchall():
                whole = any(f"Seq Scan on {table}" in line for table in ("tasks", "task_status", "label_postings"))
                lines.append(f"{'!!!' if whole else '   '} {line}")
        connection.rollback()
        connection.execute("DEALLOCATE ALL")
        connection.commit()
    return "\n".join(lines)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list) else value


def listing(lab: Lab) -> Iterator[Series]:
    """Build the registry, unless it was kept, and read its pages."""
    with arena(lab.server, keep=lab.keep) as field:
        if field.single.execute("SELECT count(*) FROM solti.tasks").fetchone() == (0,):
            began = time.perf_counter()
            indexed = build(field, lab.sizes.million)
            took = time.perf_counter() - began
            lab.notes.append(
                f"The registry of {lab.sizes.million:,} tasks was built in {took:.0f} s, its index of labels in"
                f" {indexed:.0f} s of them."
            )
        say("pages")
        wanted = list(pages(field))
        for number, seconds in measure(field, wanted, lab.sizes.pages).items():
            page = wanted[number]
            values = [second * 1e3 for second in seconds]
            case = f"page, {page.where}{', failed' if page.phase else ''}"
            yield Series(case, page.name, "ms", values, less=True, how=page.selector)
        if lab.explain:
            for page in wanted:
                print(explain(field, page))


WORKS = (Work("pages", "pages of 100 by selector, at 1,000,000 tasks", listing),)
