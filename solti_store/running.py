"""Runs an op: in a connection of its own, or inside a transaction that the caller holds.

Sync and async side by side; only the waiting differs. `solti_store.retry` decides, this module does.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from solti_store.errors import StoreUnavailable
from solti_store.faults import translate
from solti_store.retry import Attempts

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine
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
    """

    effect: Effect
    single: bool


_SINGLE = "AUTOCOMMIT"
_SEVERAL = "READ COMMITTED"


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
        self._single = engine.execution_options(isolation_level=_SINGLE)
        self._several = engine.execution_options(isolation_level=_SEVERAL)
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
                with (self._single if mode.single else self._several).connect() as conn:
                    committing = mode.single
                    result = op(conn, *args, **kwargs)
                    committing = True
                    if not mode.single:
                        conn.commit()
                    return result
            except DBAPIError as error:
                wait = attempts.failed(error, committing=committing)
            except PoolTimeout as error:
                raise attempts.given_up(StoreUnavailable(f"no free connection in the pool: {error}")) from error
            except StoreUnavailable as error:
                raise attempts.given_up(error) from error
            time.sleep(wait)


class AsyncPooled:
    """The async twin of `Pooled`."""

    def __init__(self, engine: AsyncEngine, policy: RetryPolicy) -> None:
        self._single = engine.execution_options(isolation_level=_SINGLE)
        self._several = engine.execution_options(isolation_level=_SEVERAL)
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
                async with (self._single if mode.single else self._several).connect() as conn:
                    committing = mode.single
                    result = await conn.run_sync(op, *args, **kwargs)
                    committing = True
                    if not mode.single:
                        await conn.commit()
                    return result
            except DBAPIError as error:
                wait = attempts.failed(error, committing=committing)
            except PoolTimeout as error:
                raise attempts.given_up(StoreUnavailable(f"no free connection in the pool: {error}")) from error
            except StoreUnavailable as error:
                raise attempts.given_up(error) from error
            await asyncio.sleep(wait)


class Bound:
    """Each op inside the caller's transaction: nothing is committed, and nothing tried again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        del mode
        try:
            return op(self._connection, *args, **kwargs)
        except DBAPIError as error:
            raise translate(error) from error


class AsyncBound:
    """The async twin of `Bound`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def __call__(  # noqa: D102
        self,
        op: Callable[Concatenate[Connection, P], T],
        mode: Mode,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        del mode
        try:
            return await self._connection.run_sync(op, *args, **kwargs)
        except DBAPIError as error:
            raise translate(error) from error
