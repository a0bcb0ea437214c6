"""Make roles that can do their job and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.errors import Invalid, SchemaMismatch, SoltiStoreError
from solti_store.faults import sqlstate
from solti_store.sql import roles as sql
from solti_store.sql.naming import report_schema, schema_of
from solti_store.sql.schemas import as_it_stands

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

__all__ = ["Roles", "ensure"]

_MAX_BYTES = 63  # PostgreSQL would cut a longer one off
_MAX_MS = 2**31 - 1  # what a setting of the server can hold
_IS_THERE = {"42710", "23505"}
_NOT_ALLOWED = "42501"


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of the roles to make; None where none is wanted.

    Attributes:
        owner: Owns both schemas and all that is in them, and migrates. Without one, whoever owns them now stays.
        worker: Reads and writes rows: for workers, and for what creates and reads tasks.
        reader: Reads reports.

    Raises:
        Invalid: A name is none of a role, or occurs twice.
    """

    owner: str | None = None
    worker: str | None = None
    reader: str | None = None

    def __post_init__(self) -> None:
        for name in self._named():
            if not name or len(name.encode(errors="replace")) > _MAX_BYTES or not name.isprintable():
                raise Invalid(
                    f"invalid model: a role's name has 1 to {_MAX_BYTES} bytes, got {name!r:.70}",
                    field="role",
                )
            if name.startswith("pg_") or name in ("public", "none"):
                raise Invalid(f"invalid model: a role cannot be named {name!r}", field="role")
        if len(set(self._named())) < len(self._named()):
            raise Invalid("invalid model: each role has a name of its own", field="role")

    @classmethod
    def prefixed(cls, prefix: str) -> Roles:
        """All three: `…_owner`, `…_worker` and `…_reader`."""
        return cls(*(f"{prefix}_{job.name}" for job in fields(cls)))

    def _named(self) -> list[str]:
        return [name for name in (self.owner, self.worker, self.reader) if name is not None]


def ensure(connection: Connection, roles: Roles, timeout: timedelta) -> list[str]:
    """Make these roles, or set right those that are there: what they may do in the connection's schemas.

    An owner takes over the schemas and all that is in them. That locks each table for a moment, and only if it has
    another owner; commit soon.

    Args:
        connection: In a transaction of a superuser, or of a role that may create roles, create schemas here, and is a
            member of who owns the schemas. Nobody else does this, or migrates, at the same time.
        roles: Which ones, and their names.
        timeout: How long a statement of the reader may take, unless it asks for more: 1 ms to 2^31 - 1 ms.

    Returns:
        Those that are new.

    Raises:
        Invalid: The timeout is none.
        SchemaMismatch: There is no schema, and no owner to make it for.
        SoltiStoreError: A role may do more than its job, or the connection's role may not do this.
    """
    timeout_ms = timeout // timedelta(milliseconds=1)
    if not 1 <= timeout_ms <= _MAX_MS:
        raise Invalid(f"invalid model: a timeout is 1 ms to {_MAX_MS} ms (24 days), got {timeout}", field="timeout")
    try:
        return _ensure(connection, roles, timeout_ms)
    except DBAPIError as error:
        if sqlstate(error) != _NOT_ALLOWED:
            raise
        reason = str(error.orig).strip().partition("\n")[0]
        raise SoltiStoreError(
            f"this takes a superuser, or a role that may create roles and owns the schemas: {reason}"
        ) from None


def _ensure(connection: Connection, roles: Roles, timeout_ms: int) -> list[str]:
    schema = schema_of(connection)
    connection.execute(sql.LOCK)
    database = connection.execute(sql.SELECT_DATABASE).one()
    owner = roles.owner or connection.scalar(sql.SELECT_OWNER, {"schema": schema})
    if owner is None:
        raise SchemaMismatch(f"the database has no schema {schema}: migrate it, or name an owner to make it for")
    if owner in (roles.worker, roles.reader):
        # What is taken from a worker first would be the owner's own rights.
        raise SoltiStoreError(f"the role '{owner}' owns the schemas: name another, or --owner who takes them over")
    jobs = {"owner": roles.owner, "worker": roles.worker, "reader": roles.reader}
    named = {job: name for job, name in jobs.items() if name is not None}
    new = [name for name in named.values() if _create(connection, name, database.name)]
    if roles.owner is not None:
        if not database.is_superuser and owner in new:
            _run(connection, [sql.join(owner)])
        names = {"schema": schema, "reports": report_schema(schema), "owner": owner}
        for missing in connection.scalars(sql.SELECT_MISSING, names).all():
            _run(connection, [sql.create_schema(missing, owner)])
        _run(connection, sql.own(schema))
        found = connection.execute(sql.SELECT_FOREIGN, names).all()
        _run(connection, (sql.take(one.kind, one.name, owner) for one in found))
    if roles.worker is not None:
        kept = connection.scalars(sql.SELECT_KEPT, {"schema": schema}).all()
        _run(connection, sql.work(schema, owner, roles.worker, kept))
    if roles.reader is not None:
        _run(connection, sql.read(schema, owner, roles.reader, database.name, timeout_ms))
    for job, name in named.items():
        asked = {"name": name, "job": job, "schema": schema, "reports": report_schema(schema), "owner": owner}
        if excess := connection.scalars(sql.SELECT_EXCESS, asked).all():
            raise SoltiStoreError(f"the role '{name}' is not for a {job} alone: it {', '.join(sorted(excess))}")
    return new


def _create(connection: Connection, name: str, database: str) -> bool:
    """Make the role, unless it is there; whether it is new."""
    found = connection.execute(sql.SELECT_ROLE, {"name": name}).one()
    is_new = not found.is_there
    if is_new:
        try:
            # Roles are the whole server's: somebody may be at it in another database.
            with connection.begin_nested():
                _run(connection, [sql.create(name)])
        except DBAPIError as error:
            if sqlstate(error) not in _IS_THERE:
                raise
            is_new = False
        found = connection.execute(sql.SELECT_ROLE, {"name": name}).one()
    if not found.connects:
        _run(connection, [sql.connect(database, name)])
    return is_new


def _run(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.execute(as_it_stands(statement))
