"""One attempt of a WebAssembly task, with the real compiler in a real process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest
import wasmtime
from workers import HOURS_MS, claim_of, eventually, run_attempt, terms

from solti_store.model import RunnerEnv, TaskPhase, Wasm
from solti_store.rules.outcome import Outcome
from solti_store.worker import Control, RunnerUnavailable, WasmRunner
from solti_store.worker.runners import wasm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

WASI = '"wasi_snapshot_preview1"'
IMPORTS = f"""
(import {WASI} "proc_exit" (func $exit (param i32)))
(import {WASI} "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
(import {WASI} "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
(import {WASI} "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
(import {WASI} "args_get" (func $args (param i32 i32) (result i32)))
(import {WASI} "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
(import {WASI} "environ_get" (func $env (param i32 i32) (result i32)))
(import {WASI} "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
(memory (export "memory") 4)
"""

# Writes what is at `at`, `length` bytes of it, to a file descriptor.
SAY = """
(func $say (param $fd i32) (param $at i32) (param $length i32)
  (i32.store (i32.const 8) (local.get $at))
  (i32.store (i32.const 12) (local.get $length))
  (drop (call $write (local.get $fd) (i32.const 8) (i32.const 1) (i32.const 16))))
"""


def module(folder: Path, start: str, data: str = "") -> Wasm:
    text = f'(module {IMPORTS} {data} {SAY} (func (export "_start") {start}))'
    return written(folder, text)


def written(folder: Path, text: str, *args: str, env: dict[str, str] | None = None) -> Wasm:
    file = folder / "module.wasm"
    file.write_bytes(bytes(wasmtime.wat2wasm(text)))
    return Wasm.module(str(file), *args, env=env or {})


def run(
    kind: Wasm,
    meanwhile: Callable[[Control], Awaitable[None]] | None = None,
    *,
    timeout_ms: int = HOURS_MS,
    env: RunnerEnv = RunnerEnv(),
    output_tail: int = 4096,
) -> Outcome:
    under = terms(timeout_ms, env=env, output_tail=output_tail)
    return run_attempt(WasmRunner(), claim_of(kind, timeout_ms), meanwhile, under)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("", Outcome.succeeded(0)),
        ("(call $exit (i32.const 0))", Outcome.succeeded(0)),
        ("(call $exit (i32.const 7))", Outcome.failed("exit code 7", exit_code=7)),
        ("(call $exit (i32.const 300))", Outcome.failed("exit with invalid exit status outside of [0..126)")),
        ("unreachable", Outcome.failed("wasm trap: wasm `unreachable` instruction executed")),
        ("(drop (i32.load (i32.const -1)))", Outcome.failed("wasm trap: out of bounds memory access")),
    ],
)
def test_how_a_module_ends_is_how_the_attempt_ends(start: str, expected: Outcome, tmp_path: Path) -> None:
    assert run(module(tmp_path, start), output_tail=0) == expected


def test_output_is_kept_apart_and_named_in_the_error(tmp_path: Path) -> None:
    data = '(data (i32.const 100) "to out\\nto err \\c3\\a9\\n")'
    start = """(call $say (i32.const 1) (i32.const 100) (i32.const 7))
               (call $say (i32.const 2) (i32.const 107) (i32.const 10)) (call $exit (i32.const 3))"""
    outcome = run(module(tmp_path, start, data))
    assert (outcome.error, outcome.exit_code) == ("exit code 3: to err é", 3)
    assert (outcome.stdout, outcome.stderr) == ("to out\n", "to err é\n")


def test_the_backtrace_of_a_trap_is_kept(tmp_path: Path) -> None:
    stderr = run(module(tmp_path, "unreachable")).stderr
    assert stderr is not None
    assert "wasm backtrace" in stderr


def test_a_module_gets_its_arguments_and_variables_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKERS_OWN", "secret")
    start = """
        (drop (call $args_sizes (i32.const 0) (i32.const 4)))
        (drop (call $args (i32.const 1000) (i32.const 2000)))
        (call $say (i32.const 1) (i32.const 2000) (i32.load (i32.const 4)))
        (drop (call $env_sizes (i32.const 0) (i32.const 4)))
        (drop (call $env (i32.const 1000) (i32.const 2000)))
        (call $say (i32.const 2) (i32.const 2000) (i32.load (i32.const 4)))"""
    text = f'(module {IMPORTS} {SAY} (func (export "_start") {start}))'
    # PYTHONPATH is the module's affair and not the interpreter's.
    env = {"A": "task", "B": "b\nc", "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    kind = written(tmp_path, text, "-x", "a b", "", env=env)
    outcome = run(kind, env=RunnerEnv({"A": "runner"}))
    assert outcome.phase is TaskPhase.SUCCEEDED
    # The end of a C string is a NUL, which the store cannot hold.
    assert (outcome.stdout or "").split("\ufffd") == [kind.spec.module, "-x", "a b", "", ""]
    variables = ["A=runner", "B=b\nc", "PYTHONHOME=/nowhere", "PYTHONPATH=/nowhere", ""]
    assert (outcome.stderr or "").split("\ufffd") == variables


def test_a_module_cannot_read_what_its_process_was_given(tmp_path: Path) -> None:
    start = """
        (i32.store (i32.const 8) (i32.const 1000))
        (i32.store (i32.const 12) (i32.const 100))
        (drop (call $read (i32.const 0) (i32.const 8) (i32.const 1) (i32.const 20)))
        (call $exit (i32.load (i32.const 20)))"""
    assert run(module(tmp_path, start)) == Outcome.succeeded(0)


SPIN = "(loop $again (br $again))"
# Waits for ever: an hour on the clock, in a host call, in which no epoch ends it.
SLEEP = """
    (i32.store8 (i32.const 208) (i32.const 0))
    (i64.store (i32.const 224) (i64.const 3600000000000))
    (drop (call $poll (i32.const 200) (i32.const 300) (i32.const 1) (i32.const 400)))"""


@pytest.mark.parametrize("start", [pytest.param(SPIN, id="computes"), pytest.param(SLEEP, id="sleeps")])
@pytest.mark.parametrize("how", ["timeout", "stop", "kill"])
def test_a_runaway_module_ends_when_it_is_told_to(start: str, how: str, tmp_path: Path) -> None:
    # More than anything else that its process writes: that it is in there is seen by it.
    size, data = 200_000, '(data (i32.const 200000) "ready\\n")'
    kind = module(tmp_path, f"(call $say (i32.const 1) (i32.const 6) (i32.const {size})) {start}", data)

    async def end(control: Control) -> None:
        (child,) = await eventually(children)
        await eventually(lambda: child.io_counters().write_chars >= size)
        if how == "stop":
            control.stop(Outcome.canceled())
        elif how == "kill":
            control.kill(Outcome.canceled())

    outcome = run(kind, end, timeout_ms=3000 if how == "timeout" else HOURS_MS, output_tail=6)
    assert outcome.stdout == "ready\n"
    expected = Outcome.timed_out(3000) if how == "timeout" else Outcome.canceled()
    assert outcome.replace(stdout=None) == expected
    assert children() == []


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "wasm_child" in " ".join(child.cmdline())
    ]


def test_output_is_bounded_while_it_comes(tmp_path: Path) -> None:
    # 64 KiB, two thousand times.
    data = '(data (i32.const 131072) "the end")'
    start = """(local $n i32)
        (loop $again
          (call $say (i32.const 1) (i32.const 1000) (i32.const 65536))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $again (i32.lt_u (local.get $n) (i32.const 2000))))
        (call $say (i32.const 1) (i32.const 131072) (i32.const 7))"""
    outcome = run(module(tmp_path, start, data), output_tail=1000)
    assert outcome.stdout == "\ufffd" * 993 + "the end"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory"),
        ("(module)", "the module exports no function _start"),
        ('(module (memory (export "_start") 1))', "the module exports no function _start"),
        ('(module (import "env" "x" (func)))', "unknown import: `env::x` has not been defined"),
        ("nonsense", ""),
    ],
)
def test_what_cannot_start_fails_and_says_why(text: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "module.wasm"
    if text is not None:
        file.write_bytes(b"nonsense" if text == "nonsense" else bytes(wasmtime.wat2wasm(text)))
    outcome = run(Wasm.module(str(file)))
    assert (outcome.phase, outcome.exit_code, outcome.fatal) == (TaskPhase.FAILED, None, False)
    assert outcome.error is not None
    assert outcome.error.startswith("cannot start: ")
    assert outcome.error.endswith(says)


def test_a_start_function_that_traps(tmp_path: Path) -> None:
    kind = written(tmp_path, '(module (func $f unreachable) (start $f) (func (export "_start")))')
    assert run(kind, output_tail=0) == Outcome.failed("wasm trap: wasm `unreachable` instruction executed")


def test_a_killed_process_is_no_success(tmp_path: Path) -> None:
    async def kill(_control: Control) -> None:
        (child,) = await eventually(children)
        os.kill(child.pid, 9)

    assert run(module(tmp_path, SPIN), kill, output_tail=0) == Outcome.failed("killed by signal SIGKILL")


def test_without_the_package_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm, "find_spec", lambda _name: None)
    with pytest.raises(RunnerUnavailable, match=r"pip install 'solti-store\[wasm\]'"):
        WasmRunner()
