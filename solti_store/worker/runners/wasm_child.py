"""The process of one WebAssembly attempt: `python -P wasm_child.py`, with what to run as a file on standard input.

A program and not a module of the package: importing the package would load SQLAlchemy, at four times the cost of
wasmtime. It ends as the module did, and writes how into the file that it got; the module cannot reach that.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from typing import Any

import wasmtime


def _engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    # Compiled code is kept on disk: a module of 10 MB takes seconds to compile. Without a home there is no such place.
    with suppress(wasmtime.WasmtimeError):
        config.cache = True
    return wasmtime.Engine(config)


def _load(asked: dict[str, Any]) -> tuple[wasmtime.Store, wasmtime.Func]:
    engine = _engine()
    module = wasmtime.Module.from_file(engine, asked["module"])
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.argv = [asked["module"], *asked["args"]]
    wasi.env = [(key, value) for key, value in asked["env"]]
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    start = linker.instantiate(store, module).exports(store).get("_start")
    if not isinstance(start, wasmtime.Func):
        raise wasmtime.WasmtimeError("the module exports no function _start")
    return store, start


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    """Run the module; its exit code, or why it has none."""
    try:
        store, start = _load(asked)
    except OSError as error:
        return {"error": f"cannot start: {asked['module']!r}: {error.strerror or error}"}
    except wasmtime.WasmtimeError as error:
        return {"error": f"cannot start: {str(error).strip().splitlines()[0]}"}
    except wasmtime.Trap as error:  # of a start function, which runs when the module is loaded
        return _trapped(error)
    try:
        start(store)
    except wasmtime.ExitTrap as error:
        return {"exit": error.code}
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        return _trapped(error)
    return {"exit": 0}


def _trapped(error: Exception) -> dict[str, Any]:
    sys.stderr.write(f"{error}\n")
    # The cause stands below the backtrace; of several, which are numbered, the last one says what it was.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return {"error": re.sub(r"^[0-9]+: ", "", lines[-1])}


def main() -> int:
    """Run what the file on standard input says, and answer in it."""
    letter = os.fdopen(os.dup(0), "r+b")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    answer = _run(json.loads(letter.read()))
    sys.stderr.flush()
    letter.seek(0)
    letter.truncate()
    letter.write(json.dumps(answer).encode())
    letter.flush()
    return int(answer.get("exit", 1))


if __name__ == "__main__":
    sys.exit(main())
