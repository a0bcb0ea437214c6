"""One process, its process group and the end of its output.

Not asyncio's own subprocesses: they collect the dead process first and tell afterwards. From then on its number may
be another's, and to signal the group would hit an innocent one, most likely in a worker that was stopped for a while
between the two. Here the end is seen through a pidfd, and the leader stays a zombie, which keeps its number taken,
until what is left of its group is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Process"]

# Kept at least, for the last line of it is what an error says.
_LEAST_TAIL_BYTES = 4096
_CHUNK = 64 * 1024
# What the leader wrote before its end is at most a full pipe (1 MiB if somebody enlarged it). A bound, because
# somebody who left the group may write on for ever.
_LAST_CHUNKS = 17
_POLL_S = 0.02


class _Output:
    """The last bytes of a pipe that is read as fast as it is written, so that no writer ever blocks on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keep: int) -> None:
        self._loop = loop
        self._keep = keep
        self._end, self.writer = os.pipe()
        self._kept = bytearray()
        os.set_blocking(self._end, False)
        loop.add_reader(self._end, self._read)

    def _read(self) -> bool:
        try:
            data = os.read(self._end, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._end)
            return False
        self._kept += data
        del self._kept[: -self._keep]
        return True

    def close(self) -> None:
        """Take what is there, without waiting for whoever else holds the pipe."""
        for _ in range(_LAST_CHUNKS):
            if not self._read():
                break
        self._loop.remove_reader(self._end)
        os.close(self._end)

    @property
    def tail(self) -> bytes:
        return bytes(self._kept)


class Process:
    """A running process, leader of a session and a process group of its own.

    When the leader ends, the attempt is over, and what is left of its group is killed.

    Args:
        argv: The program, looked up in the PATH of `env`, and its arguments.
        cwd: Its working directory; None means the worker's.
        env: Its whole environment.
        keep: How many bytes of each of its outputs to keep, from the end; of less than 4096, those.
        stdin: A file descriptor for its standard input; empty if not given.

    Raises:
        OSError: It cannot be started.
        ValueError: A name in `env` cannot be one.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None,
        env: Mapping[str, str],
        keep: int = 0,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        outputs: list[_Output] = []
        try:
            outputs.append(_Output(self._loop, max(keep, _LEAST_TAIL_BYTES)))
            outputs.append(_Output(self._loop, max(keep, _LEAST_TAIL_BYTES)))
            self._popen = subprocess.Popen(  # noqa: S603 - to run what the task says is the purpose
                argv,
                stdin=stdin,
                stdout=outputs[0].writer,
                stderr=outputs[1].writer,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        except BaseException:
            for output in outputs:
                output.close()
            raise
        finally:
            for output in outputs:
                os.close(output.writer)
        self._outputs = outputs
        self._watch()

    @property
    def stdout(self) -> bytes:
        """The last bytes of its standard output."""
        return self._outputs[0].tail

    @property
    def stderr(self) -> bytes:
        """The last bytes of its standard error."""
        return self._outputs[1].tail

    def send(self, number: signal.Signals) -> None:
        """Signal the whole group, unless the leader has ended."""
        if not self.ended.done():
            self._signal_group(number)

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except (ProcessLookupError, PermissionError):
            # Nobody is left, or all who are have become another user; the wait for the leader goes on.
            return

    def _watch(self) -> None:
        try:
            # An AttributeError where the system has no such thing (macOS), an OSError in an old sandbox.
            self._pidfd = os.pidfd_open(self._popen.pid)
        except (AttributeError, OSError):
            self._poll()
        else:
            self._loop.add_reader(self._pidfd, self._readable)

    def _readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._signal_group(signal.SIGKILL)
        self._end(self._popen.wait())

    def _poll(self) -> None:
        code = self._popen.poll()
        if code is None:
            self._loop.call_later(_POLL_S, self._poll)
            return
        # The number is free since a moment ago; as close as it gets without a pidfd.
        self._signal_group(signal.SIGKILL)
        self._end(code)

    def _end(self, code: int) -> None:
        for output in self._outputs:
            output.close()
        self.ended.set_result(code)
