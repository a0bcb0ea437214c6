"""Run embedded tasks: Python functions that the worker's own program has registered."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from asyncio import FIRST_COMPLETED
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from solti_store.errors import Invalid
from solti_store.rules.outcome import Outcome
from solti_store.worker.runners.base import until_over
from solti_store.worker.runners.text import MAX_ERROR_CHARS, clean, tail_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from solti_store.model import KindName, Labels, TaskId, TaskSpec
    from solti_store.ops.rows import Claim
    from solti_store.worker.runners.base import Control, Terms

__all__ = ["FUNCTION_LABEL", "EmbeddedCall", "EmbeddedFunction", "EmbeddedRunner", "FatalError"]

#: The label that says which function a task runs; without it, its slot does.
FUNCTION_LABEL: Final = "function"

# How long a coroutine that is to be killed gets to hear of it: cancellation takes a turn of the loop or a few.
_LAST_TURNS_S = 1.0
_SHOWN_NAMES = 20


class FatalError(Exception):
    """Raised by an embedded function for a failure that no other attempt can mend: the task is never retried."""


class _Signal:
    """A `threading.Event` that is made when somebody wants it: few functions do, and it is made of ten objects."""

    __slots__ = ("_event", "_is_set")

    # One for all: it is held for an assignment.
    _lock: Final = threading.Lock()

    def __init__(self) -> None:
        self._event: threading.Event | None = None
        self._is_set = False

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            if self._event is not None:
                self._event.set()

    @property
    def event(self) -> threading.Event:
        if (event := self._event) is not None:  # who looks often shall not wait for others who do
            return event
        with self._lock:
            if self._event is None:
                self._event = threading.Event()
                if self._is_set:
                    self._event.set()
            return self._event


@dataclass(frozen=True, slots=True)
class EmbeddedCall:
    """What an embedded function is called with.

    Attributes:
        task_id: The task.
        attempt: The attempt's number, from 1.
        spec: The task's spec.
    """

    task_id: TaskId
    attempt: int
    spec: TaskSpec
    _signal: _Signal = field(default_factory=_Signal, repr=False, compare=False, kw_only=True)

    @property
    def canceled(self) -> threading.Event:
        """Set once the attempt is to end: canceled, past its timeout, or because its worker stops.

        A function that is not async looks at it, or waits with `canceled.wait(seconds)`; nothing else can end it.
        """
        return self._signal.event

    @property
    def labels(self) -> Labels:
        """The task's labels."""
        return self.spec.labels


EmbeddedFunction: TypeAlias = Callable[[EmbeddedCall], None] | Callable[[EmbeddedCall], Awaitable[None]]
"""Takes the call, and returns None or raises."""


class EmbeddedRunner:
    """Runs embedded tasks by functions of the worker's own program.

    An async function runs in the worker's loop, and is cancelled to end it; whatever it blocks is blocked for the
    worker's heartbeats too. Any other runs in a thread of its own. A thread cannot be killed: one that goes on after
    its attempt was reported takes up a place of the worker's until it returns, and meanwhile the next attempt of the
    same task may run elsewhere.

    Args:
        functions: The functions, by the name that a task asks for with its label `function` or, without that label,
            with its slot.

    Raises:
        Invalid: Something that is no function.
    """

    kind: Final[KindName] = "embedded"

    def __init__(self, functions: Mapping[str, EmbeddedFunction]) -> None:
        for name, function in functions.items():
            if not callable(function):
                raise Invalid(f"invalid model: function '{name}' cannot be called", field="functions")
        self._functions = dict(functions)

    async def run(self, claim: Claim, control: Control, terms: Terms) -> Outcome:
        """Call the function, and wait for its end or bring it about; see `Runner.run`."""
        name = claim.spec.labels.get(FUNCTION_LABEL, claim.spec.slot)
        function = self._functions.get(name)
        if function is None:
            return Outcome.failed(f"no function '{_shown(name)}' is registered here, only {self._known()}")
        signal = _Signal()
        call = EmbeddedCall(claim.task_id, claim.attempt, claim.spec, _signal=signal)
        try:
            running = (_Coroutine if _is_async(function) else _Thread)(function, call, signal)
        except RuntimeError as error:  # no more threads on this machine
            return Outcome.failed(clean(f"cannot start: {error}"))
        try:
            forced = await until_over(running.ended, control, terms, claim)
            if forced is not None:
                running.end()
                await asyncio.wait((running.ended, control.urgent), timeout=terms.grace_s, return_when=FIRST_COMPLETED)
        finally:
            if not running.ended.done():
                await running.kill()
            if not running.ended.done():
                control.abandon(running.over)
        return forced or _natural(running.error, terms)

    def _known(self) -> str:
        names = sorted(self._functions)
        more = f" and {len(names) - _SHOWN_NAMES} others" if len(names) > _SHOWN_NAMES else ""
        return ", ".join(f"'{_shown(name)}'" for name in names[:_SHOWN_NAMES]) + more if names else "none"


class _Thread:
    """A function in a thread.

    Not of a pool: Python waits for a pool's threads when it exits, so a function that never returns would keep a
    stopped worker's process alive for ever. How many there are is bounded by the worker's places.
    """

    def __init__(self, function: Callable[[EmbeddedCall], Any], call: EmbeddedCall, signal: _Signal) -> None:
        self._over: Future[None] = Future()
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[None] = self._loop.create_future()
        self._signal = signal
        body = partial(contextvars.copy_context().run, self._body, function, call)
        threading.Thread(target=body, name=f"solti-{call.task_id}-{call.attempt}", daemon=True).start()

    def _body(self, function: Callable[[EmbeddedCall], Any], call: EmbeddedCall) -> None:
        try:
            _refuse_awaitable(function(call))
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it ends this function, not the worker
            self._over.set_exception(error)
        else:
            self._over.set_result(None)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if not self._told.done():
            self._told.set_result(None)

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done once it has returned."""
        return self._told

    @property
    def over(self) -> Future[None]:
        """The same for those who have no loop."""
        return self._over

    @property
    def error(self) -> BaseException | None:
        """What it raised; only once it has ended."""
        return self._over.exception()

    def end(self) -> None:
        """Ask it to end."""
        self._signal.set()

    async def kill(self) -> None:
        """The same: no more can be done."""
        self.end()


class _Coroutine:
    """An async function in the worker's loop."""

    def __init__(self, function: Callable[[EmbeddedCall], Any], call: EmbeddedCall, signal: _Signal) -> None:
        self._signal = signal
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._body(function, call), name=f"solti-{call.task_id}-{call.attempt}")

    async def _body(self, function: Callable[[EmbeddedCall], Any], call: EmbeddedCall) -> BaseException | None:
        try:
            await function(call)
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001
            # As a result: out of a task SystemExit would end the loop, and so the worker.
            return error
        return None

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done once it has returned. The task and not its body, which a cancellation may keep from ever beginning."""
        return self._task

    @property
    def over(self) -> Future[None]:
        """The same for those who have no loop."""
        over: Future[None] = Future()
        self._task.add_done_callback(lambda _: over.set_result(None))
        return over

    @property
    def error(self) -> BaseException | None:
        """What it raised; only once it has ended."""
        task = self._task
        return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()

    def end(self) -> None:
        """Cancel it."""
        self._signal.set()
        self._task.cancel()

    async def kill(self) -> None:
        """Cancel it, once more if need be, and give it the time to hear of it."""
        self.end()
        await asyncio.wait((self._task,), timeout=_LAST_TURNS_S)


def _is_async(function: object) -> bool:
    # `__call__`, for objects that are called as functions are.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _refuse_awaitable(result: object) -> None:
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("a function that is not async returned an awaitable, which nobody awaits: make it async")


def _natural(error: BaseException | None, terms: Terms) -> Outcome:
    if error is None:
        return Outcome.succeeded()
    name = type(error).__name__
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - the function's own exception may be as broken as the function
        said = ""
    message = clean(f"{name}: {said}" if said else name)[:MAX_ERROR_CHARS]
    outcome = Outcome.failed(message, fatal=isinstance(error, FatalError))
    return outcome.with_output(None, tail_text(_traceback(error), terms.output_tail))


def _traceback(error: BaseException) -> bytes:
    # The first frame is this module's.
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    try:
        return "".join(traceback.format_exception(type(error), error, frames)).encode(errors="replace")
    except Exception:  # noqa: BLE001 - as above
        return b""


def _shown(name: str) -> str:
    return clean(name)[:100]
