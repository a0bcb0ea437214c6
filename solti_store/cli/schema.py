"""The commands of `db` about the schema: where it is, where it goes, what that will do."""

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solti_store.cli import parsing
from solti_store.cli.exits import Exit, UsageError, message_of
from solti_store.cli.render import Column, Output, Table, elapsed, emit, note, one_line, show_details, show_table
from solti_store.cli.session import open_connection, session_of
from solti_store.cli.tasks import OutputOption

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from solti_store.migration.plan import Planned
    from solti_store.migration.waiting import Waits
    from solti_store.rules.window import Applied

__all__ = ["check", "current", "downgrade", "plan", "stamp", "upgrade"]

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
SqlOption = Annotated[bool, typer.Option("--sql", help="Print the SQL and run nothing; needs no database.")]
LockTimeoutOption = Annotated[
    str, typer.Option("--lock-timeout", metavar="TIME", help="The longest wait for a lock, before another try.")
]
PatienceOption = Annotated[
    str, typer.Option("--patience", metavar="TIME", help="How long to try again, for each revision.")
]


def upgrade(
    context: typer.Context,
    revision: Annotated[
        str, typer.Argument(metavar="[REVISION]", help="Up to which revision; with --sql also FROM:TO.")
    ] = "head",
    *,
    sql: SqlOption = False,
    lock_timeout: LockTimeoutOption = "3s",
    patience: PatienceOption = "5m",
) -> None:
    """Bring the database's schema up to date. Any number of processes may do so at once."""
    session, waits = session_of(context), _waits(lock_timeout, patience)
    from solti_store import migrate  # noqa: PLC0415 - half a second that help does not need
    from solti_store.url import resolve_url  # noqa: PLC0415

    if sql:
        emit("".join(migrate.script(revision, schema=session.schema, waits=waits)))
        return
    _show_progress()
    migrate.upgrade(resolve_url(session.url), revision, schema=session.schema, waits=waits)
    _print_revision(context)


def downgrade(
    context: typer.Context,
    revision: Annotated[
        str,
        typer.Argument(
            metavar="REVISION", help="Down to which; base removes all tables; with --sql FROM:TO.", show_default=False
        ),
    ],
    *,
    yes: YesOption = False,
    sql: SqlOption = False,
    lock_timeout: LockTimeoutOption = "3s",
    patience: PatienceOption = "5m",
) -> None:
    """Take the schema back to an older revision. Data that has no place there is lost."""
    session, waits = session_of(context), _waits(lock_timeout, patience)
    if sql and ":" not in revision:
        raise UsageError("without a database a downgrade is FROM:TO")
    if not yes and not sql:
        raise UsageError("a downgrade may lose data: give -y if that is meant")
    from solti_store import migrate  # noqa: PLC0415
    from solti_store.url import resolve_url  # noqa: PLC0415

    if sql:
        emit("".join(migrate.script(revision, down=True, schema=session.schema, waits=waits)))
        return
    _show_progress()
    migrate.downgrade(resolve_url(session.url), revision, schema=session.schema, waits=waits)
    _print_revision(context)


def stamp(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Where it is.", show_default=False)],
    *,
    yes: YesOption = False,
) -> None:
    """Say which revision the schema is at, after its SQL was run by hand. Changes nothing else, and checks nothing."""
    if not yes:
        raise UsageError("a wrong stamp makes the next upgrade fail or skip: give -y if that is meant")
    from solti_store import migrate  # noqa: PLC0415
    from solti_store.url import resolve_url  # noqa: PLC0415

    session = session_of(context)
    migrate.stamp(resolve_url(session.url), revision, schema=session.schema)
    _print_revision(context)


def current(context: typer.Context, output: OutputOption = Output.NAME) -> int:
    """Show the schema's revision, and what is applied. Exit code 5 if this version does not work with it."""
    from solti_store.ops import schema  # noqa: PLC0415

    with open_connection(context) as connection:
        found = schema.applied(connection)
        history = schema.history(connection)
        verdict = _verdict(connection, found)
    if output is Output.JSON:
        import json  # noqa: PLC0415

        listed = [
            {"revision": name, "oldestCode": code, "appliedAt": moment.isoformat()} for name, code, moment in history
        ]
        emit(json.dumps(verdict.document | {"history": listed}, separators=(",", ":")) + "\n")
    elif output is Output.TABLE:
        columns = (Column("Revision", is_name=True), Column("Oldest code", is_name=True), Column("Applied at"))
        show_table(Table(columns, [[name, code, moment.isoformat(" ", "seconds")] for name, code, moment in history]))
    else:
        emit(f"{found.revision if found else 'none'}\n")
    return verdict.told()


def check(context: typer.Context, output: OutputOption = Output.NAME) -> int:
    """Whether this version works with the database's schema. Exit code 5 if not: for readiness probes."""
    from solti_store.ops import schema  # noqa: PLC0415

    with open_connection(context) as connection:
        found = schema.applied(connection)
        verdict = _verdict(connection, found)
        broken = schema.invalid_indexes(connection)
    names = [one.subject for one in broken]
    if output is Output.JSON:
        import json  # noqa: PLC0415

        emit(json.dumps(verdict.document | {"invalidIndexes": names}, separators=(",", ":")) + "\n")
    elif output is Output.TABLE:
        rows = [("Fits", "no" if verdict.problem else "yes"), ("Revision", found.revision if found else "none")]
        show_details([*rows, ("Invalid indexes", ", ".join(names) or "-")])
    else:
        emit("no\n" if verdict.problem else "yes\n")
    for one in broken:
        note(f"index {one.subject} {one.found}: {one.remedy}")
    return verdict.told()


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether this version works with a schema.

    Attributes:
        document: What every command says of it in JSON.
        problem: Why it does not; None if it does.
        lag: What it would rather have; None if nothing.
    """

    document: dict[str, Any]
    problem: str | None
    lag: str | None

    def told(self) -> int:
        """Tell people; the exit code."""
        if told := self.problem or self.lag:
            note(told)
        return Exit.OK if self.problem is None else Exit.UNAVAILABLE


def _verdict(connection: "Connection", found: "Applied | None") -> _Verdict:
    from solti_store.errors import SchemaMismatch  # noqa: PLC0415
    from solti_store.ops import schema  # noqa: PLC0415
    from solti_store.sql.naming import schema_of  # noqa: PLC0415

    name, head, problem, lag = schema_of(connection), schema.WINDOW.head, None, None
    try:
        schema.require(found, name)
    except SchemaMismatch as error:
        problem = message_of(error)
    else:
        if schema.WINDOW.lags(found):
            lag = f"this version brings {head}: run `solti-store{schema.options(name)} db upgrade`"
    document = {"fits": problem is None, "revision": found.revision if found else None, "head": head}
    return _Verdict(document | {"problem": problem}, problem, lag)


def plan(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="[REVISION]", help="Up to which revision.")] = "head",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what an upgrade would run, what it locks and for about how long. Runs nothing, and locks no table."""
    if ":" in revision:
        raise UsageError(f"a plan begins where the database is: give one revision, got {revision[:80]!r}")
    from solti_store import migrate  # noqa: PLC0415
    from solti_store.migration.plan import plan as plan_  # noqa: PLC0415
    from solti_store.ops import schema  # noqa: PLC0415
    from solti_store.sql.naming import schema_of  # noqa: PLC0415

    with open_connection(context) as connection:
        applied, name = schema.applied(connection), schema_of(connection)
        found = applied.revision if applied else None
        if revision == "head" and found is not None and found > schema.WINDOW.head and schema.is_ahead(applied, name):
            # As `upgrade` has it, which does nothing then.
            pieces = []
        else:
            pieces = migrate.script(f"{found or 'base'}:{revision}", schema=name)
        planned = plan_(connection, pieces)
    if output is Output.JSON:
        import json  # noqa: PLC0415

        emit(json.dumps({"from": found, "to": revision, "items": [_document(each) for each in planned]}) + "\n")
        return
    if output is Output.NAME:
        emit("".join(pieces))
        return
    columns = (
        Column("Revision", is_name=True),
        Column("Tx", is_number=True),
        Column("Statement", is_flexible=True),
        Column("On", is_name=True),
        Column("Lock"),
        Column("Rows", is_number=True),
        Column("Time", is_number=True),
        Column("Note", styles={}),
    )
    show_table(Table(columns, [_row(each) for each in planned]))
    if not planned:
        note("nothing is to do")


def _row(planned: "Planned") -> list[str]:
    step, touch, size = planned.step, planned.touch, planned.size
    known = step.statement.is_known
    return [
        step.revision or "-",
        "-" if step.transaction is None else str(step.transaction),
        one_line(step.statement.sql)[:100],
        touch.relation if touch else "-" if known else "?",
        touch.lock.label if touch else "-" if known else "unknown: assume ACCESS EXCLUSIVE",
        "-" if touch is None else "new" if size is None else str(size.rows),
        "-" if planned.seconds is None else elapsed(planned.seconds * 1000),
        "; ".join(_notes(planned)) or "-",
    ]


def _notes(planned: "Planned") -> list[str]:
    step, touch, size = planned.step, planned.touch, planned.size
    if touch is None or size is None:
        return []
    notes = [f"stops {touch.lock.stops}"] if touch.lock.stops else []
    if touch.rewrites:
        notes.append("rewrites the table")
    elif touch.scans:
        notes.append("in batches" if step.in_batches else "reads all rows")
    return notes


def _document(planned: "Planned") -> dict[str, Any]:
    step, touch, size = planned.step, planned.touch, planned.size
    return {
        "revision": step.revision or None,
        "transaction": step.transaction,
        "sql": step.statement.sql,
        "isKnown": step.statement.is_known,
        "inBatches": step.in_batches,
        "relation": touch.relation if touch else None,
        "lock": touch.lock.label if touch else None if step.statement.is_known else "ACCESS EXCLUSIVE",
        "rewrites": touch.rewrites if touch else None,
        "scans": touch.scans if touch else None,
        "rows": size.rows if size else None,
        "bytes": size.bytes + size.index_bytes if size else None,
        "seconds": planned.seconds,
    }


def _waits(lock_timeout: str, patience: str) -> "Waits":
    timeout, whole = parsing.duration(lock_timeout, "--lock-timeout"), parsing.duration(patience, "--patience")
    from solti_store.migration.waiting import Waits  # noqa: PLC0415 - SQLAlchemy, for nothing if an option is wrong

    return Waits(lock_timeout=timeout, patience=whole)


def _show_progress() -> None:
    """On a terminal somebody waits."""
    if sys.stderr.isatty():
        logging.getLogger("solti_store.migration").setLevel(logging.INFO)


def _print_revision(context: typer.Context) -> None:
    from solti_store.ops import schema  # noqa: PLC0415

    with open_connection(context) as connection:
        emit(f"{schema.revision(connection) or 'none'}\n")
