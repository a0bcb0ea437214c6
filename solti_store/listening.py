"""A worker's ear: a connection of its own, on which it hears that there is something to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from psycopg import sql as names

from solti_store.sql import waking as sql
from solti_store.sql.driver import forget_cursor
from solti_store.sql.session import IS_DIRECT

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from solti_store.sql.driver import Prepared

__all__ = ["Ear"]


class Ear:
    """Hears that tasks were created. Use it as a context manager, from one coroutine; errors are the driver's.

    Attributes:
        can_hear: Whether the session is the connection's own: a pooler in transaction mode gives each statement
            another one.

    Args:
        engine: Where the connection is taken from; it does not count against the engine's pool.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection
        self._driver: Any = None
        self.can_hear = False

    async def __aenter__(self) -> Self:
        self._connection = await self._engine.connect()
        try:
            await self._connection.execution_options(isolation_level="AUTOCOMMIT")
            self._driver = await self._connection.run_sync(_detached)
            answer = await self._driver.execute(IS_DIRECT, {"seen": self._driver.info.backend_pid})
            ((self.can_hear,),) = await answer.fetchall()
            if self.can_hear:
                ((name,),) = await self._run(sql.CHANNEL)
                await self._driver.execute(names.SQL("LISTEN {}").format(names.Identifier(name)))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # SQLAlchemy leaves a detached async connection to the collector, and its lock with it.
        if self._driver is not None:
            await self._driver.close()
        await self._connection.close()

    async def open(self) -> None:
        """Let creators see that somebody waits. What was created before they did has to be looked for."""
        await self._run(sql.WAIT)
        # Whoever called before this returns is covered by that look.
        await self._drain()

    async def close(self) -> None:
        """Let them see that nobody does any more."""
        await self._run(sql.LET_GO)

    async def hear(self, seconds: float) -> bool:
        """Wait for a notice; whether there was one within so many seconds."""
        # Not by psycopg's `notifies`, which wakes up ten times a second to see whether it was interrupted.
        loop, has_news = asyncio.get_running_loop(), asyncio.Event()
        file = self._driver.fileno()
        loop.add_reader(file, has_news.set)
        try:
            async with asyncio.timeout(seconds):
                await has_news.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(file)
        return await self._drain()

    async def _drain(self) -> bool:
        """Take all notices that have come; whether there were any. Fails if the connection is gone."""
        # To the end: a generator that is left keeps the connection's lock until it is collected.
        return bool([notice async for notice in self._driver.notifies(timeout=0)])

    async def _run(self, statement: Prepared) -> list[Any]:
        return await self._connection.run_sync(statement.all, {})


def _detached(connection: Connection) -> Any:  # noqa: ANN401 - psycopg's
    # In this order: once it is detached, it no longer tells. The pool's record would keep a cursor of it.
    driver = connection.connection.driver_connection
    forget_cursor(connection)
    connection.detach()
    return driver
