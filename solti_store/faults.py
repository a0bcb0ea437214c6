"""What a database error means: for the transaction it struck, and for the caller.

By SQLSTATE and constraint name only; messages are translated, reworded and truncated by servers and poolers.
"""

from __future__ import annotations

from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, OperationalError

from solti_store.errors import (
    Invalid,
    SchemaMismatch,
    SoltiStoreError,
    StoreUnavailable,
    TransactionAborted,
)

__all__ = [
    "Fault",
    "classify",
    "is_missing_table",
    "is_owner_conflict",
    "is_refusal",
    "may_be_schema",
    "spoils_connection",
    "sqlstate",
    "translate",
]


class Fault(Enum):
    """What an error says about the transaction."""

    CONFLICT = auto()
    """It lost against another one and was rolled back: run it again."""

    CONNECTION = auto()
    """The connection is gone, or was never had. Rolled back, unless COMMIT was under way."""

    FINAL = auto()
    """It was refused, and would be again."""


_READ_ONLY = "25006"
_CONFLICTS = {"40001", "40P01"}
_FAILED_TRANSACTION = "25P02"
# Shutdown, crash, starting up, too many clients; and read-only, as a demoted primary is: another connection, made
# by a multi-host URL, leads to the new one.
_UNREACHABLE = {"57P01", "57P02", "57P03", "53300", _READ_ONLY}
# Read-only, as a demoted primary is: a new connection, by a URL of several hosts, finds the new one. And a prepared
# statement that a migration made stale, which psycopg would send again and again.
_USELESS = {_READ_ONLY, "0A000"}
# Of these, the ones that say no to a statement, or to a connection: nothing was begun.
_REFUSALS = {"57P03", "53300", _READ_ONLY, "0A000"}
_NO_TABLE = {"3F000", "42P01"}
_SCHEMA = _NO_TABLE | {"42703", "42883"}
# What else a statement meets on a schema that it was not written for: nothing of that name or type, a column that it
# must give, a rule that it does not know.
_CLASS_STATEMENT = "42"
_PERHAPS_SCHEMA = {"3F000", "23502", "23514"}
_NO_PERMISSION = "42501"
_CLASS_CONNECTION = "08"
_CLASS_DATA = "22"
_CHECK_VIOLATION = "23514"
_ONE_OWNER = "uq_task_status_owner"


def sqlstate(error: DBAPIError) -> str | None:
    """The error's SQLSTATE; None when no server was reached."""
    return getattr(error.orig, "sqlstate", None)


def classify(error: DBAPIError) -> Fault:
    """What the error says about the transaction it struck."""
    state = sqlstate(error)
    if state in _CONFLICTS:
        return Fault.CONFLICT
    if state is None:
        lost = error.connection_invalidated or isinstance(error, OperationalError)
        return Fault.CONNECTION if lost else Fault.FINAL
    if error.connection_invalidated or state in _UNREACHABLE or state.startswith(_CLASS_CONNECTION):
        return Fault.CONNECTION
    return Fault.FINAL


def is_refusal(error: DBAPIError) -> bool:
    """Whether the server said that it did nothing, though the connection is of no use."""
    return sqlstate(error) in _REFUSALS


def is_missing_table(error: DBAPIError) -> bool:
    """Whether a table is not there, or its schema."""
    return sqlstate(error) in _NO_TABLE


def may_be_schema(error: DBAPIError) -> bool:
    """Whether the reason may be a schema that the statement was not written for."""
    state = sqlstate(error) or ""
    return state in _PERHAPS_SCHEMA or (state.startswith(_CLASS_STATEMENT) and state != _NO_PERMISSION)


def is_owner_conflict(error: DBAPIError) -> bool:
    """Whether the slot has an owner already; others may have become it a moment ago."""
    return _constraint(error) == _ONE_OWNER


def spoils_connection(error: BaseException | None) -> bool:
    """Whether the connection is of no use after this error of psycopg's, though it still stands."""
    return getattr(error, "sqlstate", None) in _USELESS


def translate(error: DBAPIError) -> SoltiStoreError:  # noqa: PLR0911 - one for each meaning
    """The error a caller gets when there is nothing left to try."""
    state = sqlstate(error)
    match classify(error):
        case Fault.FINAL if state == _FAILED_TRANSACTION:
            return TransactionAborted("the transaction failed before; roll it back and run it again")
        case Fault.CONFLICT:
            return TransactionAborted(f"the transaction lost against a concurrent one ({state}); run it again")
        case Fault.CONNECTION if state == _READ_ONLY:
            return StoreUnavailable("the database is read-only, as a replica is: give the URL of the primary")
        case Fault.CONNECTION:
            return StoreUnavailable(f"the database cannot be reached: {_first_line(error)}")
        case Fault.FINAL if state in _SCHEMA:
            return SchemaMismatch(
                "the database has not the schema that this code needs; run `solti-store db upgrade`"
                f" ({_first_line(error)})"
            )
        case Fault.FINAL if state == _CHECK_VIOLATION:
            name = _constraint(error)
            return Invalid(f"invalid model: the database refuses the value (constraint {name})", field=name or "")
        case Fault.FINAL if state is not None and state.startswith(_CLASS_DATA):
            return Invalid(f"invalid model: the database refuses the value ({_first_line(error)})")
        case _:
            return StoreUnavailable(f"the database refused ({state}): {_first_line(error)}")


def _constraint(error: DBAPIError) -> str | None:
    name: str | None = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return name


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]
