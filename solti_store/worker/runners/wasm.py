"""Run WebAssembly tasks, each in a process of its own.

Not in a thread of the worker: epoch interruption ends a module that computes, but not one that sleeps or waits in a
host call, a fault in the compiler or in compiled code takes its process with it, and output has no bound unless
somebody reads it. A process can be killed, costs a tenth of a second, and its output is a pipe like any other.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from solti_store.model import Wasm, merge_env
from solti_store.rules.outcome import Outcome
from solti_store.worker.process import Process
from solti_store.worker.runners.base import RunnerUnavailable, kind_of
from solti_store.worker.runners.subprocess import cannot_start, natural_end, supervise, with_output
from solti_store.worker.runners.text import MAX_ERROR_CHARS, clean

if TYPE_CHECKING:
    from solti_store.model import KindName, WasmSpec
    from solti_store.ops.rows import Claim
    from solti_store.worker.runners.base import Control, Terms

__all__ = ["WasmRunner"]

_CHILD = Path(__file__).with_name("wasm_child.py")


class WasmRunner:
    """Runs WASI modules (preview 1, with a `_start`) with wasmtime.

    A module gets its arguments, the task's and the runner's variables, and nothing else of this machine: no files,
    no network, an empty standard input.

    Raises:
        RunnerUnavailable: The package wasmtime is not installed.
    """

    kind: Final[KindName] = "wasm"

    def __init__(self) -> None:
        # Looked for, not imported: the compiler belongs into the processes that use it.
        if find_spec("wasmtime") is None:
            raise RunnerUnavailable(
                "wasm tasks need the package wasmtime, which is not installed: pip install 'solti-store[wasm]'"
            )

    async def run(self, claim: Claim, control: Control, terms: Terms) -> Outcome:
        """Run a module to its end; see `Runner.run`."""
        spec = kind_of(claim, Wasm).spec
        try:
            # What to run goes in, and how it ended comes out, by this file: arguments can be read by everybody on the
            # machine, and variables of a task must not reach the interpreter, which heeds PYTHONPATH and LD_PRELOAD.
            with tempfile.TemporaryFile() as letter:
                letter.write(json.dumps(_asked(spec, terms)).encode())
                letter.seek(0)
                # -P: beside the child lie modules named like those of the standard library.
                argv = [sys.executable, "-P", str(_CHILD)]
                process = Process(argv, cwd=None, env=os.environ, keep=terms.output_tail, stdin=letter.fileno())
                forced = await supervise(process, control, terms, claim)
                outcome = forced or _natural(process, _answer(letter))
        except (OSError, ValueError) as error:
            return cannot_start(error)
        return with_output(outcome, process, terms)


def _asked(spec: WasmSpec, terms: Terms) -> dict[str, Any]:
    return {"module": spec.module, "args": spec.args, "env": list(merge_env(spec.env, terms.env).items())}


def _answer(letter: IO[bytes]) -> dict[str, Any] | None:
    letter.seek(0)
    try:
        answer = json.loads(letter.read())
    except ValueError:
        return None
    # The question, if the process ended before it could answer.
    return answer if isinstance(answer, dict) and "module" not in answer else None


def _natural(process: Process, answer: dict[str, Any] | None) -> Outcome:
    code = process.ended.result()
    if answer is None:
        # Killed from outside, or broken; a success it is not, for that would have been answered.
        return natural_end(process) if code != 0 else Outcome.failed("the module's process ended without an answer")
    if "error" in answer:
        return Outcome.failed(clean(str(answer["error"]))[:MAX_ERROR_CHARS])
    if (code := int(answer["exit"])) == 0:
        return Outcome.succeeded(0)
    return natural_end(process)
