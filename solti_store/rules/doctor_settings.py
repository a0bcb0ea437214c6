"""What ails a server by how it is set up: its settings, its connections, its clock, and what is in between."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from solti_store.rules.doctor import Code, Finding, Severity, amount, finding, quoted, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from solti_store.rules.doctor import DoctorLimits

__all__ = [
    "SETTINGS",
    "Connections",
    "Server",
    "clock",
    "connections",
    "milliseconds",
    "pooler",
    "role_settings",
    "server",
    "settings",
]

SUPPORTED: Final = range(15, 19)
_DEFAULT_BUFFERS: Final = 128 << 20
_BLOCK: Final = 8192
_FULL: Final = 0.8

#: The settings that are looked at, as a session of the store has them.
SETTINGS: Final = (
    "autovacuum",
    "track_counts",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "idle_in_transaction_session_timeout",
    "statement_timeout",
    "jit",
    "shared_buffers",
    "default_transaction_isolation",
    "default_transaction_read_only",
)


@dataclass(frozen=True, slots=True)
class Server:
    """What kind of server this is; `version` is its server_version_num."""

    version: int
    is_standby: bool
    encoding: str
    database: str
    tables_bytes: int


def server(found: Server, values: Mapping[str, str], limits: DoctorLimits) -> Iterator[Finding]:
    """Whether this is a server that the store is made for."""
    if found.version // 10_000 not in SUPPORTED:
        yield finding(
            Code.SERVER_VERSION,
            Severity.WARNING,
            "server",
            f"PostgreSQL {found.version // 10_000}; tested are {SUPPORTED[0]} to {SUPPORTED[-1]}",
            "pg_upgrade --check  # to one of these, or take another version of solti-store",
        )
    if found.encoding != "UTF8":
        yield finding(
            Code.SETTING_ENCODING,
            Severity.ERROR,
            f"database {found.database}",
            f"its encoding is {found.encoding}",
            f"CREATE DATABASE {quoted(f'{found.database}_utf8')} ENCODING 'UTF8' TEMPLATE template0;"
            "  -- and restore a dump there",
        )
    buffers = int(values.get("shared_buffers", "0")) * _BLOCK
    if found.tables_bytes >= limits.memory_bytes and 0 < buffers <= _DEFAULT_BUFFERS:
        yield finding(
            Code.SETTING_MEMORY,
            Severity.WARNING,
            "shared_buffers",
            f"{size(buffers)}, for tables of {size(found.tables_bytes)}",
            "ALTER SYSTEM SET shared_buffers = '1GB';  -- a quarter of the machine's memory; needs a restart",
        )


def settings(values: Mapping[str, str], limits: DoctorLimits, *, is_standby: bool) -> Iterator[Finding]:
    """Settings of the server, and of the store's sessions there."""
    for name, code in (
        ("fsync", Code.SETTING_DURABILITY),
        ("full_page_writes", Code.SETTING_DURABILITY),
        ("autovacuum", Code.SETTING_AUTOVACUUM),
        ("track_counts", Code.SETTING_AUTOVACUUM),
    ):
        if values.get(name) == "off":
            yield finding(code, Severity.ERROR, name, "off", f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();")
    if values.get("idle_in_transaction_session_timeout") == "0":
        yield finding(
            Code.SETTING_IDLE,
            Severity.WARNING,
            "idle_in_transaction_session_timeout",
            "0 in a session of the store",
            "ALTER ROLE CURRENT_USER SET idle_in_transaction_session_timeout = '10s';",
        )
    if values.get("jit") == "on":
        yield finding(
            Code.SETTING_JIT,
            Severity.NOTE,
            "jit",
            "on in a session of the store",
            "ALTER ROLE CURRENT_USER SET jit = off;",
        )
    yield from _of_sessions(values, limits, "", "CURRENT_USER", is_standby=is_standby)


def role_settings(found: Iterable[tuple[str, Sequence[str]]], limits: DoctorLimits) -> Iterator[Finding]:
    """Settings of roles that may write to our tables, `name=value` each."""
    for role, given in found:
        values = dict(one.split("=", 1) for one in given)
        yield from _of_sessions(values, limits, f" of role {role}", quoted(role), is_standby=False)


def _of_sessions(
    values: Mapping[str, str], limits: DoctorLimits, whose: str, role: str, *, is_standby: bool
) -> Iterator[Finding]:
    timeout = milliseconds(values.get("statement_timeout", "0"))
    if 0 < timeout < limits.statement.total_seconds() * 1000:
        yield finding(
            Code.SETTING_TIMEOUT,
            Severity.WARNING,
            f"statement_timeout{whose}",
            f"{timeout:g} ms",
            f"ALTER ROLE {role} SET statement_timeout = '60s';",
        )
    if (commit := values.get("synchronous_commit")) == "off":
        yield finding(
            Code.SETTING_COMMIT,
            Severity.ERROR,
            f"synchronous_commit{whose}",
            commit,
            f"ALTER ROLE {role} SET synchronous_commit = on;",
        )
    if (isolation := values.get("default_transaction_isolation", "read committed")) != "read committed":
        yield finding(
            Code.SETTING_ISOLATION,
            Severity.WARNING,
            f"default_transaction_isolation{whose}",
            isolation,
            f"ALTER ROLE {role} SET default_transaction_isolation = 'read committed';",
        )
    if values.get("default_transaction_read_only") == "on" and not is_standby:
        yield finding(
            Code.SETTING_READ_ONLY,
            Severity.ERROR,
            f"default_transaction_read_only{whose}",
            "on",
            f"ALTER ROLE {role} SET default_transaction_read_only = off;",
        )


_TIME = re.compile(r"\s*([0-9.]+)\s*(us|ms|s|min|h|d)?\s*")
_MS: Final = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(text: str) -> float:
    """A setting that is a time; 0 when it is none."""
    found = _TIME.fullmatch(text)
    return float(found[1]) * _MS[found[2] or "ms"] if found else 0


@dataclass(frozen=True, slots=True)
class Connections:
    """How many there are, may be, and could become; `pool` is None of a pool without a bound."""

    used: int
    allowed: int
    agents: int
    pool: int | None


def connections(found: Connections) -> Iterator[Finding]:
    """Whether they may run out."""
    raise_ = "ALTER SYSTEM SET max_connections = 200;  -- needs a restart; or put PgBouncer before the server"
    if found.used >= _FULL * found.allowed:
        yield finding(
            Code.SETTING_CONNECTIONS,
            Severity.WARNING,
            "max_connections",
            f"{found.used} of {found.allowed} are taken",
            raise_,
        )
    elif found.pool is not None and found.agents * found.pool > found.allowed:
        yield finding(
            Code.SETTING_CONNECTIONS,
            Severity.NOTE,
            "max_connections",
            f"{found.agents} live agents with up to {found.pool} connections each, as this process has, could want"
            f" {found.agents * found.pool} of {found.allowed}",
            raise_,
        )


def pooler(*, told: int, real: int, prepares: bool) -> Iterator[Finding]:
    """Whether somebody sits between: the process that the client was told of is not the one that answers.

    Args:
        told: The backend's pid as it was given at the connection's start.
        real: The pid of the backend that answers.
        prepares: Whether the driver prepares statements.
    """
    if told != real:
        yield finding(
            Code.POOLER,
            Severity.WARNING if prepares else Severity.NOTE,
            "connection",
            f"backend {real} answers where {told} was announced: a pooler is in between"
            + (", and statements are prepared" if prepares else ""),
            "create_engine(url, connect_args={'prepare_threshold': None})  # as TaskStore.open does by itself;"
            " or PgBouncer 1.22+ with max_prepared_statements; migrate by a direct URL",
        )


def clock(*, ahead: float, uncertain: float, limits: DoctorLimits) -> Iterator[Finding]:
    """Whether this machine and the database agree on the time.

    Args:
        ahead: Seconds that the database is ahead.
        uncertain: Seconds that it may be less, for the time that the question took.
        limits: The limits.
    """
    off = abs(ahead) - uncertain
    if off >= limits.skew.total_seconds():
        yield finding(
            Code.CLOCK_SKEW,
            amount(off, limits.skew.total_seconds()),
            "this machine",
            f"its clock is {abs(ahead):.1f} s {'behind' if ahead > 0 else 'ahead of'} the database's",
            "chronyc makestep  # on the machine that is wrong; timedatectl says whether its clock is synchronized",
        )
