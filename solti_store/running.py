"""Runs an op: in a connection of its own, or inside a transaction that the caller holds.

Sync and async side by side; only the waiting differs. `solti_store.retry` decides, this module does.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from solti_store.errors import Invalid, SchemaMismatch, StoreUnavailable, TransactionAborted
from solti_store.faults import Fault, classify, may_be_schema, translate
from solti_store.ops import schema
from solti_store.ops.waking import wake_if_possible
from solti_store.retry import Attempts
from solti_store.sql.driver import is_autocommit
from solti_store.sql.naming import in_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from solti_store.retry import Effect, RetryPolicy

__all__ = ["AsyncBound", "AsyncPooled", "AsyncRunner", "Bound", "Mode", "Pooled", "Runner"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mode:
    """What the runner has to know of an op.

    Attributes:
        effect: What it does, should it run twice.
        single: Whether its first statement is all that it changes: then it needs no BEGIN and COMMIT around it,
            which is two round trips less.
        snapshot: Whether all its statements, which then only read, have to see the same state.
        wakes: Asked of its result, after its commit, whether to wake the workers that wait; None is never.
    """

    effect: Effect
    single: bool
    snapshot: bool = False
    wakes: Callable[[Any], object] | None = None


def _level(mode: Mode, connection: Connection) -> IsolationLevel | None:
    """The isolation level to set for an op; None when the connection is as it should be.

    To set one, and back at the end, costs 39 µs, as much as a point read takes of psycopg's time.
    """
    if not mode.single:
        return "REPEATABLE READ" if mode.snapshot else "READ COMMITTED"
    return None if is_autocommit(connection) else "AUTOCOMMIT"


class Runner(Protocol):
    """How a sync store runs its ops."""

    def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...


class AsyncRunner(Protocol):
    """How an async store runs its ops."""

    async def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...


class Pooled:
    """Each op in a transaction of its own, tried again where that is safe."""

    def __init__(self, engine: Engine, policy: RetryPolicy) -> None:
        self._engine = engine
        self._policy = policy

    def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        attempts = Attempts(self._policy, mode.effect)
        while True:
            # Connecting is no commit; a single statement commits itself, so its failure may come after.
            committing = False
            try:
                with self._engine.connect() as conn:
                    # Set here and not on the engine, where an interruption would lose the connection just taken.
                    if level := _level(mode, conn):
                        conn.execution_options(isolation_level=level)
                    committing = mode.single
                    result = op(conn, *args, **kwargs)
                    committing = True
                    if not mode.single:
                        conn.commit()
                    if mode.wakes is not None and mode.wakes(result):
                        conn.execution_options(isolation_level="AUTOCOMMIT")
                        wake_if_possible(conn)
                    return result
            except DBAPIError as error:
                if may_be_schema(error) and (mismatch := self._mismatch()):
                    raise attempts.given_up(mismatch) from error
                wait = attempts.failed(error, committing=committing)
            except PoolTimeout as error:
                raise attempts.given_up(StoreUnavailable(f"no free connection in the pool: {error}")) from error
            except StoreUnavailable as error:
                raise attempts.given_up(error) from error
            time.sleep(wait)

    def _mismatch(self) -> SchemaMismatch | None:
        """Whether the schema is one that this code does not work on, as after a migration too far under its feet."""
        try:
            with self._engine.connect() as conn:
                conn.execution_options(isolation_level="AUTOCOMMIT")
                schema.check(conn)
        except SchemaMismatch as mismatch:
            return mismatch
        except (DBAPIError, PoolTimeout, StoreUnavailable):
            pass  # the first error is the one to tell
        return None


class AsyncPooled:
    """The async twin of `Pooled`."""

    def __init__(self, engine: AsyncEngine, policy: RetryPolicy) -> None:
        self.engine = engine
        self._policy = policy

    async def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        attempts = Attempts(self._policy, mode.effect)
        while True:
            committing = False
            try:
                async with self.engine.connect() as conn:
                    if level := _level(mode, _sync(conn)):
                        await conn.execution_options(isolation_level=level)
                    committing = mode.single
                    result = await conn.run_sync(op, *args, **kwargs)
                    committing = True
                    if not mode.single:
                        await conn.commit()
                    if mode.wakes is not None and mode.wakes(result):
                        await conn.execution_options(isolation_level="AUTOCOMMIT")
                        await conn.run_sync(wake_if_possible)
                    return result
            except DBAPIError as error:
                if may_be_schema(error) and (mismatch := await self._mismatch()):
                    raise attempts.given_up(mismatch) from error
                wait = attempts.failed(error, committing=committing)
            except PoolTimeout as error:
                raise attempts.given_up(StoreUnavailable(f"no free connection in the pool: {error}")) from error
            except StoreUnavailable as error:
                raise attempts.given_up(error) from error
            await asyncio.sleep(wait)

    async def _mismatch(self) -> SchemaMismatch | None:
        try:
            async with self.engine.connect() as conn:
                await conn.execution_options(isolation_level="AUTOCOMMIT")
                await conn.run_sync(schema.check)
        except SchemaMismatch as mismatch:
            return mismatch
        except (DBAPIError, PoolTimeout, StoreUnavailable):
            pass
        return None


class Bound:
    """Each op inside the caller's transaction: nothing is committed, and nothing tried again."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema

    def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        del mode
        with _in_transaction(self._connection), in_schema(self._connection, self._schema):
            return op(self._connection, *args, **kwargs)


class AsyncBound:
    """The async twin of `Bound`."""

    def __init__(self, connection: AsyncConnection, schema: str) -> None:
        self._connection = connection
        self._schema = schema

    async def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        del mode
        sync = _sync(self._connection)
        with _in_transaction(sync), in_schema(sync, self._schema):
            return await self._connection.run_sync(op, *args, **kwargs)


@contextmanager
def _in_transaction(connection: Connection) -> Iterator[None]:
    """The caller's transaction: it must be one, and what breaks it gets the package's own errors."""
    try:
        if is_autocommit(connection):
            raise Invalid(
                "invalid model: using() takes a connection in a transaction, not in AUTOCOMMIT", field="connection"
            )
        yield
    except PendingRollbackError as error:
        raise TransactionAborted("the transaction failed before; roll it back and run it again") from error
    except DBAPIError as error:
        translated = translate(error)
        if isinstance(translated, StoreUnavailable) and classify(error) is Fault.FINAL:
            # A lock timeout, a cancelled statement: the connection stands, the transaction does not.
            translated = TransactionAborted(str(translated))
        raise translated from error


def _sync(connection: AsyncConnection) -> Connection:
    sync = connection.sync_connection
    if sync is None:
        raise Invalid("invalid model: using() takes a connection that is open", field="connection")
    return sync
