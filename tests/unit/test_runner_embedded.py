"""One attempt of an embedded task: functions in threads and in the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workers import HOURS_MS, claim_of, eventually, run_attempt, terms

from solti_store.errors import Invalid
from solti_store.model import Embedded, TaskPhase
from solti_store.rules.outcome import Outcome
from solti_store.worker import Control, EmbeddedCall, EmbeddedFunction, EmbeddedRunner, FatalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from solti_store.worker import Terms


def run(
    function: EmbeddedFunction,
    meanwhile: Callable[[Control], Awaitable[None]] | None = None,
    *,
    timeout_ms: int = HOURS_MS,
    under: Terms | None = None,
) -> Outcome:
    return run_attempt(EmbeddedRunner({"slot": function}), claim_of(Embedded(), timeout_ms), meanwhile, under)


def both_ways(function: Callable[[EmbeddedCall], None]) -> list[EmbeddedFunction]:
    async def coroutine(call: EmbeddedCall) -> None:
        await asyncio.sleep(0)
        function(call)

    return [function, coroutine]


class Called:
    def __init__(self) -> None:
        self.calls: list[EmbeddedCall] = []

    def __call__(self, call: EmbeddedCall) -> None:
        self.calls.append(call)


def test_a_function_is_called_with_its_task() -> None:
    called = Called()
    for function in (called, *both_ways(called), partial(called)):
        assert run(function) == Outcome.succeeded()
    assert [(call.task_id, call.attempt, call.spec.slot) for call in called.calls] == [("t", 2, "slot")] * 4
    assert not any(call.canceled.is_set() for call in called.calls)


def test_the_label_says_which_function_and_else_the_slot() -> None:
    by_slot, by_label = Called(), Called()
    runner = EmbeddedRunner({"slot": by_slot, "other": by_label})
    assert run_attempt(runner, claim_of(Embedded())) == Outcome.succeeded()
    assert run_attempt(runner, claim_of(Embedded(), labels={"function": "other"})) == Outcome.succeeded()
    assert (len(by_slot.calls), len(by_label.calls)) == (1, 1)
    assert by_label.calls[0].labels == {"function": "other"}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "no function 'mail' is registered here, only none"),
        (["b", "a"], "no function 'mail' is registered here, only 'a', 'b'"),
        ([f"f{n:02}" for n in range(22)], "'f19' and 2 others"),
    ],
)
def test_a_function_that_is_missing_is_named(names: list[str], says: str) -> None:
    runner = EmbeddedRunner(dict.fromkeys(names, Called()))
    outcome = run_attempt(runner, claim_of(Embedded(), labels={"function": "mail"}))
    assert (outcome.phase, outcome.fatal) == (TaskPhase.FAILED, False)
    assert outcome.error is not None
    assert outcome.error.endswith(says)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Mine(FatalError):
    pass


@pytest.mark.parametrize(
    ("error", "says", "fatal"),
    [
        (ValueError("no \0 good\x1b[1m"), "ValueError: no \ufffd good\ufffd[1m", False),
        (ValueError("x" * 5000), "ValueError: " + "x" * 988, False),
        (ValueError(), "ValueError", False),
        (Unprintable(), "Unprintable", False),
        (SystemExit(3), "SystemExit: 3", False),
        (StopIteration(), "StopIteration", False),
        (asyncio.CancelledError(), "CancelledError", False),
        (FatalError("never"), "FatalError: never", True),
        (Mine("never"), "Mine: never", True),
    ],
)
def test_an_exception_is_a_failure(error: BaseException, says: str, fatal: bool) -> None:
    def fails(_call: EmbeddedCall) -> None:
        raise error

    for function in both_ways(fails):
        outcome = run(function)
        # StopIteration cannot leave a coroutine.
        expected = says if function is fails or says != "StopIteration" else "RuntimeError: coroutine raised"
        assert outcome.error is not None
        assert outcome.error.startswith(expected)
        assert (outcome.phase, outcome.fatal, len(outcome.error) <= 1000) == (TaskPhase.FAILED, fatal, True)


def test_the_traceback_is_kept_as_output() -> None:
    def fails(_call: EmbeddedCall) -> None:
        raise ValueError("é why")

    for function in both_ways(fails):
        said = run(function).stderr
        assert said is not None
        assert said.startswith("Traceback")
        assert "_body" not in said
        assert said.endswith('in fails\n    raise ValueError("é why")\nValueError: é why\n')
        assert run(function, under=terms(output_tail=8)).stderr == ": é why\n"[-7:]
        assert run(function, under=terms(output_tail=0)).stderr is None


def test_a_forgotten_async_is_told() -> None:
    async def coroutine(_call: EmbeddedCall) -> None:
        raise AssertionError

    def forgetful(call: EmbeddedCall) -> Any:
        return coroutine(call)

    error = run(forgetful).error
    assert error is not None
    assert error.startswith("TypeError: a function that is not async returned an awaitable")


def test_context_is_inherited() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    seen = []

    def looks(_call: EmbeddedCall) -> None:
        seen.append(variable.get())

    async def scenario() -> None:
        variable.set("set")
        for function in both_ways(looks):
            await EmbeddedRunner({"slot": function}).run(claim_of(Embedded()), Control(), terms())

    asyncio.run(scenario())
    assert seen == ["set", "set"]


def test_only_functions_can_be_registered() -> None:
    wrong: Any = {"a": "b"}
    with pytest.raises(Invalid, match="function 'a' cannot be called"):
        EmbeddedRunner(wrong)


# --- being stopped ------------------------------------------------------------------------------


async def until_stopped(call: EmbeddedCall) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        assert call.canceled.is_set()


def until_asked(call: EmbeddedCall) -> None:
    call.canceled.wait()


@pytest.mark.parametrize("function", [until_stopped, until_asked])
@pytest.mark.parametrize("how", ["timeout", "stop", "kill"])
def test_it_ends_when_it_is_told_to(function: EmbeddedFunction, how: str) -> None:
    async def control_it(control: Control) -> None:
        if how == "stop":
            control.stop(Outcome.canceled())
        elif how == "kill":
            control.kill(Outcome.canceled())

    expected = Outcome.timed_out(20) if how == "timeout" else Outcome.canceled()
    assert run(function, control_it, timeout_ms=20 if how == "timeout" else HOURS_MS) == expected


def test_a_thread_that_does_not_listen_is_abandoned_and_says_so() -> None:
    go = threading.Event()

    async def scenario() -> None:
        control = Control()

        def deaf(_call: EmbeddedCall) -> None:
            go.wait()

        runner = EmbeddedRunner({"slot": deaf})
        outcome = await runner.run(claim_of(Embedded(), 5), control, terms(5, grace_s=0.01))
        assert outcome == Outcome.timed_out(5)
        assert control.remains is not None
        assert not control.remains.done()
        go.set()
        await eventually(control.remains.done)

    asyncio.run(scenario())


def test_an_abandoned_thread_does_not_keep_the_process() -> None:
    text = """
import asyncio, threading
from workers import claim_of, terms
from solti_store.model import Embedded
from solti_store.worker import Control, EmbeddedRunner
async def main():
    runner = EmbeddedRunner({"slot": lambda call: threading.Event().wait()})
    print(await runner.run(claim_of(Embedded(), 5), Control(), terms(5, grace_s=0.01)))
asyncio.run(main())
"""
    folder = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    assert "timed out after 5ms" in done.stdout


def test_a_coroutine_that_does_not_listen_is_abandoned_too() -> None:
    async def scenario() -> None:
        go = asyncio.Event()

        async def deaf(_call: EmbeddedCall) -> None:
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    continue

        control = Control()
        outcome = await EmbeddedRunner({"slot": deaf}).run(claim_of(Embedded(), 5), control, terms(5, grace_s=0.01))
        assert outcome == Outcome.timed_out(5)
        assert control.remains is not None
        go.set()
        await eventually(control.remains.done)

    asyncio.run(scenario())


def test_a_cancelled_runner_cancels_or_flags() -> None:
    async def scenario() -> None:
        calls: list[EmbeddedCall] = []
        ended = []

        async def waits(call: EmbeddedCall) -> None:
            calls.append(call)
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(call)

        def blocks(call: EmbeddedCall) -> None:
            calls.append(call)
            call.canceled.wait()
            ended.append(call)

        for function in (waits, blocks):
            running = asyncio.create_task(
                EmbeddedRunner({"slot": function}).run(claim_of(Embedded()), Control(), terms(grace_s=1e6))
            )
            await eventually(lambda: calls)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await eventually(lambda: ended)
            assert calls.pop().canceled.is_set()
            ended.clear()

    asyncio.run(scenario())
