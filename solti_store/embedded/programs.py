"""Running a PostgreSQL program as the server's user, with nothing of the caller's terminal or secrets."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from solti_store.errors import EmbeddedError

if TYPE_CHECKING:
    from .places import Account

__all__ = ["environment", "run", "tail"]

# initdb of a slow disk takes a few seconds; past this something hangs.
_TIMEOUT = 120.0
_TAIL_LINES = 12


def environment() -> dict[str, str]:
    """Return the environment for the programs.

    A short list of what to keep, for the server outlives its starter and may run as another user: it
    must not carry the starter's secrets in `/proc/<pid>/environ`, nor obey its PGPORT or PGDATA.
    """
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"}


def run(argv: list[str], account: Account, *, what: str, text: str = "") -> str:
    """Run a program to its end.

    It gets its own session: Ctrl-C reaches this process alone, which then kills the program.

    Args:
        argv: The program and its arguments.
        account: The user to run it as.
        what: What to call it in an error.
        text: What it reads on its standard input.

    Returns:
        Its output, standard output and error together.

    Raises:
        EmbeddedError: It failed or hung; the message ends with the last lines it wrote.
        PermissionError: The account cannot reach it.
    """
    try:
        done = subprocess.run(  # noqa: S603 - an argument list, no shell, and the path is ours
            argv,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",  # the caller's directory may be closed to the account
            env=environment(),
            start_new_session=True,
            umask=0o077,
            timeout=_TIMEOUT,
            check=False,
            user=account.uid if account.switch else None,
            group=account.gid if account.switch else None,
            extra_groups=[] if account.switch else None,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{what} did not end within {_TIMEOUT:.0f} s\n{tail(error.output or b'')}") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        who = f" as system user {account.name!r}" if account.switch else ""
        raise EmbeddedError(f"{what} failed{who} (exit status {done.returncode}):\n{tail(done.stdout)}")
    return output


def tail(output: bytes) -> str:
    """Return the last lines of an output or a log, indented, for an error's message."""
    lines = [line.rstrip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (no output)"
