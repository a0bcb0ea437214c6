"""Run container tasks with the command line of docker or podman."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import secrets
import shutil
import signal
from asyncio import FIRST_COMPLETED
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from solti_store.model import Container, merge_env
from solti_store.rules.outcome import Outcome
from solti_store.worker.process import Process
from solti_store.worker.runners.base import RunnerUnavailable, kind_of, until_over
from solti_store.worker.runners.subprocess import cannot_start, natural_end, with_output
from solti_store.worker.runners.text import last_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from solti_store.model import ContainerSpec, KindName
    from solti_store.ops.rows import Claim
    from solti_store.worker.runners.base import Control, Terms

__all__ = ["ContainerRunner", "Invocation", "invocation"]

logger = logging.getLogger(__name__)

_ENGINES = ("docker", "podman")
# The command line's own codes: its own trouble, a command that cannot be run, one that is not there. A program inside
# may end with them too, which nobody can tell apart.
_CANNOT_START = range(125, 128)
# Between asking the engine to stop a container and asking again, while the container is not even created yet.
_AGAIN_S = 0.2
# `stop -t` kills by itself after the grace; this is what the engine gets to do so.
_STOP_SLACK_S = 1.0
# For the engine to remove a container.
_REMOVE_S = 10.0
# For the command line to notice that its container is gone.
_NOTICE_S = 2.0

_GONE = re.compile("no such container|already in progress", re.IGNORECASE)

# What the command lines of docker and podman, the Go runtime they are written in, or the dynamic loader read from
# their own environment. No wider than that: a value that is on this list can be read by everybody on the machine, so
# GO.* for Go's own would give away GOOGLE_API_KEY. What credential helpers read (AWS_…) is not here either.
_HEEDED = re.compile(
    r"(DOCKER|BUILDKIT|BUILDX|COMPOSE|CONTAINERS|PODMAN|CNI|NETAVARK|OTEL|LD|LC|GLIBC|MALLOC|XDG|DBUS|LISTEN)_.*"
    r"|CONTAINER_(HOST|SSHKEY|CONNECTION|PROXY|TLS.*)|STORAGE_(DRIVER|OPTS|CONF)|REGISTRY_AUTH_FILE|_CONTAINERS_.*"
    r"|GO(DEBUG|GC|MAXPROCS|MEMLIMIT|TRACEBACK|COVERDIR|RACE)|GCONV_PATH|LOCPATH|RES_OPTIONS|HOSTALIASES|LOCALDOMAIN"
    r"|SSL_CERT_(FILE|DIR)|SSH_(AUTH_SOCK|ASKPASS)|GNUPGHOME|NOTIFY_SOCKET|PATH|HOME|USER|LOGNAME|TMPDIR|LANG|LANGUAGE"
    r"|TERM|TZ|TZDIR|NO_COLOR|(HTTPS?|FTP|ALL|NO)_PROXY",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """How the command line is called.

    Attributes:
        argv: Its arguments, the program first.
        env: Its whole environment.
    """

    argv: list[str]
    env: dict[str, str]


def invocation(
    engine: str,
    spec: ContainerSpec,
    *,
    name: str,
    variables: Mapping[str, str],
    options: Sequence[str] = (),
    own: Mapping[str, str] = {},
) -> Invocation:
    """Build the call that runs a container.

    The container's variables are named on the command line, which everybody on the machine can read, and their values
    handed over in the environment of the command line, which only its user can. Not in an `--env-file`: its lines
    cannot hold a value with a line break, and docker and podman read quotes in it differently.
    A variable that the command line itself would heed is the exception, and goes with its value: `DOCKER_HOST` or
    `LD_PRELOAD` of a task must not decide which engine is asked, or what is loaded into its client.

    Args:
        engine: The program.
        spec: What to run.
        name: The container's name.
        variables: The container's environment.
        options: Further options of `run`.
        own: The environment of the command line itself.
    """
    argv = [engine, "run", "--rm", "--name", name, *options]
    handed: dict[str, str] = {}
    for key, value in variables.items():
        if not key or "=" in key:
            raise ValueError(f"{key!r} cannot be the name of an environment variable")
        if key in own or _HEEDED.fullmatch(key):
            argv += ["--env", f"{key}={value}"]
        else:
            argv += ["--env", key]
            handed[key] = value
    words = list(spec.args)
    if spec.command is not None:
        # The option takes one word; what else the command has is put before the arguments. Empty, it clears the
        # image's entry point, and also the image's own arguments.
        argv.append(f"--entrypoint={spec.command[0] if spec.command else ''}")
        words = [*spec.command[1:], *words]
    # After --, or an image named like an option would be one: "--privileged" with the real image as its argument.
    return Invocation([*argv, "--", spec.image, *words], {**own, **handed})


class ContainerRunner:
    """Runs container tasks with docker or podman, and leaves no container behind.

    Args:
        engine: The program, by name or path; the first of docker and podman that is there if not given.
        options: Further options for `run`: limits, a network, volumes, `--pull=never`. What a container may do to
            this machine is decided here and not by tasks.

    Raises:
        RunnerUnavailable: There is no such program.
    """

    kind: Final[KindName] = "container"

    def __init__(self, engine: str | None = None, *, options: Sequence[str] = ()) -> None:
        found = next(filter(None, map(shutil.which, _ENGINES if engine is None else (engine,))), None)
        if found is None:
            wanted = " or ".join(_ENGINES) if engine is None else engine
            raise RunnerUnavailable(f"container tasks need {wanted}, which is not in the PATH")
        self._engine = found
        self._options = tuple(options)

    async def run(self, claim: Claim, control: Control, terms: Terms) -> Outcome:
        """Run a container to its end; see `Runner.run`."""
        spec = kind_of(claim, Container).spec
        # Neither another attempt's nor that of another database's task, for which `seq` alone does not vouch.
        name = f"solti-{claim.seq}-{claim.attempt}-{secrets.token_hex(4)}"
        try:
            call = invocation(
                self._engine,
                spec,
                name=name,
                variables=merge_env(spec.env, terms.env),
                options=self._options,
                own=os.environ,
            )
            process = Process(call.argv, cwd=None, env=call.env, keep=terms.output_tail)
        except (OSError, ValueError) as error:
            return cannot_start(error)
        try:
            forced = await until_over(process.ended, control, terms, claim)
            if forced is not None:
                await self._stop(name, process, control, terms.grace_s)
        finally:
            await self._remove(name, process)
        return with_output(forced or _natural(process), process, terms)

    async def _stop(self, name: str, process: Process, control: Control, grace_s: float) -> None:
        """Ask the engine to stop the container: not the command line, which would pass the signal on once more."""
        clock = asyncio.get_running_loop().time
        end = clock() + grace_s + _STOP_SLACK_S
        while (left := end - clock()) > 0 and not process.ended.done() and not control.urgent.done():
            seconds = max(math.ceil(min(left, grace_s)), 0)
            stopped = await self._ask(
                ["stop", "-t", str(seconds), name], left, (process.ended, control.urgent), quiet=True
            )
            if stopped:
                # It is on its way; the command line ends with it.
                await asyncio.wait((process.ended, control.urgent), timeout=end - clock(), return_when=FIRST_COMPLETED)
                return
            # There is no such container yet: its image is being fetched, say.
            await asyncio.wait((process.ended, control.urgent), timeout=_AGAIN_S, return_when=FIRST_COMPLETED)

    async def _remove(self, name: str, process: Process) -> None:
        """Kill and remove the container, whatever became of it, and end the command line."""
        removed = await self._ask(["rm", "-f", name], _REMOVE_S, ())
        if not process.ended.done():
            await asyncio.wait((process.ended,), timeout=_NOTICE_S)
        if not process.ended.done():
            process.send(signal.SIGKILL)
            await asyncio.wait((process.ended,))
            # It may have been just about to create the container.
            removed = await self._ask(["rm", "-f", name], _REMOVE_S, ())
        if not removed:
            logger.warning("the container %s could not be removed, and may run on", name)

    async def _ask(
        self,
        words: Sequence[str],
        patience_s: float,
        unless: tuple[asyncio.Future[Any], ...],
        *,
        quiet: bool = False,
    ) -> bool:
        """Run a short command of the engine; whether it did what it was asked."""
        try:
            process = Process([self._engine, *words], cwd=None, env=os.environ)
        except OSError as error:
            logger.warning("%s cannot be run: %s", self._engine, error)
            return False
        try:
            await asyncio.wait((process.ended, *unless), timeout=patience_s, return_when=FIRST_COMPLETED)
        finally:
            process.send(signal.SIGKILL)
            await asyncio.wait((process.ended,))
        said = last_line(process.stderr)
        code = process.ended.result()
        # Older engines call it an error that there is nothing to remove, or that --rm is about to: what is wanted.
        gone = words[0] == "rm" and _GONE.search(said) is not None
        if code != 0 and not gone and not quiet:
            logger.warning("%s %s: %s", self._engine, " ".join(words), said or f"exit code {code}")
        return code == 0 or gone


def _natural(process: Process) -> Outcome:
    code = process.ended.result()
    if code not in _CANNOT_START:
        return natural_end(process)
    # Its last line only says where to read more.
    lines = [line for line in process.stderr.splitlines() if b"--help" not in line]
    said = last_line(b"\n".join(lines))
    return Outcome.failed(f"cannot start: {said or f'exit code {code}'}", exit_code=code)
