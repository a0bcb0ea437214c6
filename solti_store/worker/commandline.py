"""From a subprocess spec to the arguments and the environment of a process."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from solti_store.model import Command, Runtime, merge_env

if TYPE_CHECKING:
    from collections.abc import Iterator

    from solti_store.model import RunnerEnv, Script, SubprocessMode, TaskEnv

__all__ = ["MAX_ARGUMENT_BYTES", "arguments", "environment"]

#: Linux takes no longer argument (MAX_ARG_STRLEN, less its final NUL); a script body may be 2 MiB.
MAX_ARGUMENT_BYTES = 128 * 1024 - 1

# What stands between the script text and its arguments. bash takes the first for $0; node would read arguments
# that begin with a dash as its own options. A custom interpreter's habits are not known.
_SEPARATORS = {Runtime.BASH: ("bash",), Runtime.NODE: ("--",)}


@contextmanager
def arguments(mode: SubprocessMode) -> Iterator[list[str]]:
    """The arguments of the process, the program first.

    A script too long for an argument is in a file of its own, mode 0600 in a folder of mode 0700, until the
    context ends; the interpreter, also a custom one, gets the file's path in place of flag and text.

    Raises:
        OSError: The file cannot be written.
    """
    if isinstance(mode, Command):
        yield [mode.command, *mode.args]
        return
    body = mode.text
    if len(body.encode()) <= MAX_ARGUMENT_BYTES:
        yield _with_text(mode, body)
        return
    program, _ = mode.runtime.argv_prefix
    folder = Path(tempfile.mkdtemp(prefix="solti-script-"))
    try:
        file = folder / "script"
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(body.encode())
        yield [program, str(file), *mode.args]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_text(script: Script, body: str) -> list[str]:
    program, flag = script.runtime.argv_prefix
    separator = _SEPARATORS.get(script.runtime, ()) if isinstance(script.runtime, Runtime) else ()
    return [program, flag, body, *separator, *script.args]


def environment(task: TaskEnv, runner: RunnerEnv) -> dict[str, str]:
    """The worker's own environment, under the task's, under the runner's."""
    return {**os.environ, **merge_env(task, runner)}
