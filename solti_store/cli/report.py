"""The command that reads reports."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli import parsing
from solti_store.cli.exits import UsageError
from solti_store.cli.render import Column, Table, elapsed, note, show_table
from solti_store.cli.session import open_connection, open_store, session_of
from solti_store.rules.reports import PAGE, REPORTS, Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from solti_store.model import LabelRequirement
    from solti_store.ops.reports import Freshness

__all__ = ["report"]

_ROWS = 1000
# A drawing adds rows up, so of a thousand slots it needs those of all days.
_DRAWN_ROWS = 50_000


class ReportOutput(StrEnum):
    """The choices of `-o`."""

    TABLE = "table"
    BARS = "bars"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"
    PNG = "png"
    SVG = "svg"

    @property
    def is_drawn(self) -> bool:
        """Whether rows are added up to bars."""
        return self in {self.BARS, self.PNG, self.SVG}


def _complete(incomplete: str) -> list[str]:
    return [name for name in REPORTS if name.startswith(incomplete)]


def report(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Which one; without, says which there are.",
            autocompletion=_complete,
            show_default=False,
        ),
    ] = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only what is not older: ISO 8601, or how long ago. For reports by day: from that day on, 7d or 1d if"
            " not given.",
            show_default=False,
        ),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(
            "--selector",
            "-l",
            metavar="SELECTOR",
            help="Only tasks (or agents) whose labels match.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help=f"The most rows, {_ROWS} if not given; of those that are drawn {_DRAWN_ROWS}.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All rows.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long the database may take.")] = "30s",
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with the main reports, for a browser.", show_default=False
        ),
    ] = None,
    output: Annotated[
        ReportOutput, typer.Option("--output", "-o", help="How to print the result.")
    ] = ReportOutput.TABLE,
) -> None:
    """Show a report, from the database's reporting views. Reads only, and gives up when it takes too long."""
    bound = parsing.duration(timeout, "--timeout")
    moment = None if since is None else parsing.moment(since, "--since")
    if html is not None:
        if name is not None or selector is not None:
            raise UsageError("--html has several reports: it goes with neither NAME nor --selector")
        _write_page(context, html, moment, bound)
        return
    if name is None:
        show_table(Table([Column("NAME"), Column("SHOWS")], [(one.name, one.summary) for one in REPORTS.values()]))
        return
    wanted = _wanted(name)
    if moment is not None and wanted.time is None:
        raise UsageError(f"--since: the report {wanted.name} is about now")
    requirements = () if selector is None else _requirements(wanted, selector)
    from solti_store.cli.report_forms import writer_of  # noqa: PLC0415 - what only some reports need
    from solti_store.ops import reports  # noqa: PLC0415 - half a second that help does not need

    write = writer_of(output.value)
    most = limit or (_DRAWN_ROWS if output.is_drawn else _ROWS)
    with _reading(context, bound) as (connection, freshness):
        found = reports.read(
            connection,
            wanted,
            since=moment or _default_since(wanted),
            requirements=requirements,
            limit=None if every else most,
            timeout=bound,
        )
    write(found, freshness)
    if found.is_cut:
        note(f"there are more than {most} rows: --limit N, or --all")
    if moment is None and wanted.since is not None:
        note(f"of the last {wanted.since}: --since for more")
    if freshness.is_replica:
        note(f"from a replica: {_said_of(freshness)}")


def _said_of(freshness: "Freshness") -> str:
    """How fresh a server is, in words."""
    if freshness.as_of is None or freshness.behind_seconds is None:
        return "as of an unknown time, for it has replayed nothing since it was started"
    behind = f", at most {elapsed(freshness.behind_seconds * 1000)} behind" if freshness.is_replica else ""
    return f"as of {freshness.as_of:%Y-%m-%d %H:%M:%S %Z}{behind}"


def _write_page(context: typer.Context, file: Path, moment: datetime | None, bound: timedelta) -> None:
    from solti_store.cli.report_page import page  # noqa: PLC0415 - only this one needs it
    from solti_store.ops import reports  # noqa: PLC0415

    with _reading(context, bound) as (connection, freshness):
        found = [
            reports.read(
                connection,
                wanted,
                since=moment or _default_since(wanted),
                limit=_DRAWN_ROWS,
                timeout=bound,
            )
            for wanted in (REPORTS[name] for name in PAGE)
        ]
    try:
        file.write_text(page(found, _said_of(freshness), moment), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html: cannot write {str(file)!r}: {error.strerror}") from None
    note(f"wrote {file}")


def _wanted(name: str) -> Report:
    # As the view is called will do as well.
    found = REPORTS.get(name.replace("_", "-"))
    if found is None:
        raise UsageError(f"there is no report {name[:40]!r}: there are {', '.join(REPORTS)}")
    return found


def _requirements(wanted: Report, selector: str) -> "Sequence[LabelRequirement]":
    if not wanted.has_labels:
        able = ", ".join(one.name for one in REPORTS.values() if one.has_labels)
        raise UsageError(f"--selector: the report {wanted.name} has no labels to select by; {able} have")
    from solti_store.model import Selector  # noqa: PLC0415

    return Selector.parse(selector).requirements


def _default_since(wanted: Report) -> datetime | None:
    return None if wanted.since is None else parsing.moment(wanted.since, "--since")


@contextmanager
def _reading(context: typer.Context, bound: timedelta) -> "Iterator[tuple[Connection, Freshness]]":
    """A connection that can only read, and how fresh what it reads is."""
    from solti_store.ops import reports  # noqa: PLC0415
    from solti_store.url import is_embedded  # noqa: PLC0415

    if is_embedded(session_of(context).url):
        # A store starts the private server, and migrates it.
        open_store(context).close()
    with open_connection(context) as connection:
        connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=True)
        yield connection, reports.freshness(connection, bound)
