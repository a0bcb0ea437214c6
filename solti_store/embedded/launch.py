"""Starting the server's process, on ground cleared of what a killed one left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import psutil

from solti_store.errors import EmbeddedError

from . import places, postmaster
from .programs import environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["clear_remains", "launch"]

_ORPHANS_GRACE: Final = 2.0  # seconds
_SIGNAL_GRACE: Final = 5.0
# Puts the server into the background of a shell that ends at once, so that it becomes a child of init.
# As a child of the starter it would stay a zombie after a kill -9, and for PostgreSQL a zombie's pid file
# is that of a running server. The arguments go through untouched; pg_ctl would paste paths into a shell
# command, where a quote or a dollar sign in one is read as syntax.
_BACKGROUND: Final = '"$@" >&2 & echo $!'


def clear_remains(data_directory: Path, sockets: Path, cluster_name: str) -> None:
    """Remove what a killed server left and what would keep the next one from starting.

    The caller holds the lock and has found no server of this directory. Its sub-processes come first:
    while one is attached to the shared memory, a start is refused. They end by themselves once they are
    idle; one in the middle of a statement is told to.

    Raises:
        EmbeddedError: Somebody this process cannot see serves the directory.
        OSError: A file cannot be removed.
    """
    left = postmaster.wait_gone(postmaster.orphans(cluster_name), _ORPHANS_GRACE)
    for number in (signal.SIGQUIT, signal.SIGKILL):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        left = postmaster.wait_gone(left, _SIGNAL_GRACE)
    if places.listener(sockets) is not None:
        raise EmbeddedError(
            f"a server that this process cannot see (of another container?) uses {data_directory}: "
            "two servers on one data directory would destroy it"
        )
    # PostgreSQL refuses to start while any process has the number in a stale pid file or socket lock, and
    # on a damaged one. Nothing of ours has it, as was just established.
    for stale in (data_directory / "postmaster.pid", *sockets.glob(".s.PGSQL.*")):
        stale.unlink(missing_ok=True)


def launch(
    program: Path,
    data_directory: Path,
    account: places.Account,
    settings: Mapping[str, str],
    log_file: Path,
) -> tuple[psutil.Process | None, int]:
    """Start the server's process, without waiting for it to be ready.

    Settings are arguments, not lines of a file: what is asked for is what runs, and nothing needs quoting.

    Returns:
        The process, None if it is gone already, and the offset in the log where its words begin.

    Raises:
        OSError: The log cannot be opened, or no process can be made.
    """
    command = [os.fspath(program), "-D", os.fspath(data_directory)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # Not for everybody to read: a refused statement may be quoted in it.
    with open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
        offset = log.seek(0, os.SEEK_END)
        shell = subprocess.run(  # noqa: S603 - fixed script, arguments passed as such
            ["/bin/sh", "-c", _BACKGROUND, "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            env=environment(),
            # No Ctrl-C of the starter's terminal, and no hangup when it closes.
            start_new_session=True,
            umask=0o077,
            check=True,
            user=account.uid if account.switch else None,
            group=account.gid if account.switch else None,
            extra_groups=[] if account.switch else None,
        )
    try:
        return psutil.Process(int(shell.stdout)), offset
    except psutil.Error:
        return None, offset
