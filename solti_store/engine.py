"""Engines as the store likes them."""

from __future__ import annotations

import os
import select
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import create_async_engine

from solti_store.faults import spoils_connection
from solti_store.sql.session import SET_UP, SETTINGS
from solti_store.url import is_embedded, resolve_url, start_embedded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL, Engine
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["open_async_engine", "open_engine"]

_RECYCLE_S = 1800
# A connection idle for longer is asked whether it still lives before it is used: somebody on the way may have forgotten
# it. Asking every time (pre_ping) costs 45 µs, half a point read.
_IDLE_S = 30.0

_DEFAULTS: dict[str, Any] = {
    # What most ops want; the others say so.
    "isolation_level": "AUTOCOMMIT",
    "pool_use_lifo": True,
    "pool_recycle": _RECYCLE_S,
    "skip_autocommit_rollback": True,
    # Specs hold people's scripts and environments: not for logs and tracebacks.
    "hide_parameters": True,
}


def open_engine(url: str | URL | None = None, **options: Any) -> Engine:  # noqa: ANN401 - SQLAlchemy's options
    """An engine for a sync store.

    Args:
        url: As for `resolve_url`.
        **options: Passed to `create_engine`.
    """
    target = resolve_url(url)
    engine = create_engine(target, **(_defaults(options) | options))
    _prepare(engine, _settings(target, options), embedded=is_embedded(url))
    return engine


def open_async_engine(url: str | URL | None = None, **options: Any) -> AsyncEngine:  # noqa: ANN401
    """An engine for an async store; arguments as for `open_engine`."""
    target = resolve_url(url)
    engine = create_async_engine(target, **(_defaults(options) | options))
    _prepare(engine.sync_engine, _settings(target, options), embedded=is_embedded(url))
    return engine


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    # Another kind of pool has other options.
    return {
        name: value for name, value in _DEFAULTS.items() if not (name == "pool_use_lifo" and "poolclass" in options)
    }


def _settings(url: URL, options: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the store's own that the caller has not made in the connection's `options`."""
    given = options.get("connect_args", {}).get("options") or url.query.get("options") or os.environ.get("PGOPTIONS")
    # With the sign: jit_above_cost is another. And as the server reads a long option, with either kind of dash.
    options_given = str(given).replace("-", "_")
    return {name: value for name, value in SETTINGS.items() if f"{name}=" not in options_given}


def _prepare(engine: Engine, settings: Mapping[str, str], *, embedded: bool) -> None:
    event.listen(engine, "connect", partial(_set_up, settings))
    event.listen(engine, "checkin", _note_time)
    event.listen(engine, "checkout", _refuse_if_dead)
    event.listen(engine, "handle_error", _give_up_if_useless)
    if embedded:
        event.listen(engine, "do_connect", _revive)


def _set_up(settings: Mapping[str, str], dbapi: Any, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's hook
    """Set up a session that is this connection's own; where others share it, prepare and set nothing.

    Behind a pooler in transaction mode the next statement runs in any session. A setting made there stays, for whoever
    comes next, and a prepared statement is what somebody else gave that name: PgBouncer 1.18 executed wrong ones. For
    the same reason the settings are not in the connection's `options`: PgBouncer refuses those.
    """
    cursor = dbapi.cursor()
    try:
        seen = record.driver_connection.info.backend_pid
        cursor.execute(SET_UP, {"seen": seen, "names": list(settings), "values": list(settings.values())})
        is_direct, _ = cursor.fetchone()
        dbapi.commit()
    except BaseException:
        dbapi.close()
        raise
    finally:
        cursor.close()
    if not is_direct:
        record.driver_connection.prepare_threshold = None


def _note_time(_dbapi: Any, record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's hook
    record.info["solti_idle_since"] = time.monotonic()


def _refuse_if_dead(dbapi: Any, record: Any, proxy: Any) -> None:  # noqa: ANN401 - SQLAlchemy's hook
    idle_since = record.info.get("solti_idle_since")
    if idle_since is None:
        return
    dialect = proxy._pool._dialect  # noqa: SLF001 - the hook is not told otherwise
    try:
        alive = not _has_news(record.driver_connection)
        if alive and time.monotonic() - idle_since > _IDLE_S:
            alive = dialect.do_ping(dbapi)
    except dialect.loaded_dbapi.Error as error:
        raise DisconnectionError from error
    if not alive:
        raise DisconnectionError


def _has_news(connection: Any) -> bool:  # noqa: ANN401 - psycopg's, sync or async
    """Whether the server said something on an idle connection, which is almost always farewell.

    A microsecond, and it spares the next operation an error whose outcome nobody knows. `poll` and not `select`: file
    descriptors may be past 1024.
    """
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def _give_up_if_useless(context: ExceptionContext) -> None:
    if spoils_connection(context.original_exception):
        context.is_disconnect = True


def _revive(dialect: Any, _record: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401 - SQLAlchemy's hook
    """Connect to the private server, which may have been killed since the engine was made."""
    try:
        return dialect.connect(*args, **kwargs)
    except dialect.loaded_dbapi.OperationalError:
        start_embedded()
        return dialect.connect(*args, **kwargs)
