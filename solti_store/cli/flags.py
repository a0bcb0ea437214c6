"""The flags of `submit`, and the task they describe."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from solti_store.cli import parsing
from solti_store.cli.exits import UsageError, message_of

if TYPE_CHECKING:
    from solti_store.model import BackoffPolicy, CustomRuntime, Runtime, Subprocess, TaskSpec

__all__ = ["DEFAULT_TIMEOUT", "Flags", "from_flags"]

DEFAULT_TIMEOUT = "5m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What the command line says of a task; None where it says nothing."""

    command: list[str] | None
    script: str | None
    body: str | None
    slot: str | None
    timeout: str | None
    restart: str | None
    max_retries: int | None
    backoff: str | None
    admission: str | None
    label: list[str] | None
    select: list[str] | None
    env: list[str] | None
    cwd: str | None
    no_fail_on_non_zero: bool | None

    def first_given(self) -> str | None:
        """How the first flag that was given is spelled."""
        for one in fields(self):
            # A list option that was not given may be None or empty, by Typer's version.
            if getattr(self, one.name) not in (None, []):
                return "a command" if one.name == "command" else "--" + one.name.replace("_", "-")
        return None


def from_flags(task_id: str | None, flags: Flags) -> tuple[str, TaskSpec]:
    """The task that the flags describe; without an id it gets a new one.

    Raises:
        UsageError: The flags make no sense together, or a value is malformed.
        ModelError: A value breaks a rule of the model.
    """
    from solti_store.cli.documents import new_id  # noqa: PLC0415 - needs the model
    from solti_store.errors import ModelError  # noqa: PLC0415
    from solti_store.model import (  # noqa: PLC0415
        AdmissionPolicy,
        Labels,
        RestartPolicy,
        RunnerSelector,
        Slot,
        TaskId,
        TaskSpec,
        Timeout,
    )

    kind = _kind(flags)
    name = TaskId(new_id() if task_id is None else task_id)
    try:
        slot = Slot(name if flags.slot is None else flags.slot)
    except ModelError as error:
        if flags.slot is None:
            raise UsageError(f"{message_of(error)}; the slot is named like the task unless --slot is given") from None
        raise
    selected = parsing.pairs(flags.select or (), "--select")
    spec = TaskSpec(
        slot=slot,
        kind=kind,
        timeout=Timeout(parsing.milliseconds(flags.timeout or DEFAULT_TIMEOUT, "--timeout")),
        restart=RestartPolicy.parse(flags.restart or ""),
        backoff=_backoff(flags.backoff),
        admission=AdmissionPolicy.parse(flags.admission or ""),
        max_retries=flags.max_retries,
        runner_selector=RunnerSelector(match_labels=Labels(dict(selected))) if selected else None,
        labels=Labels(dict(parsing.pairs(flags.label or (), "--label"))),
    )
    spec.validate()
    return name, spec


def _kind(flags: Flags) -> Subprocess:
    from solti_store.model import Subprocess, TaskEnv  # noqa: PLC0415

    env = TaskEnv(parsing.pairs(flags.env or (), "--env"))
    fails = not flags.no_fail_on_non_zero
    if flags.script is None:
        if flags.body is not None:
            raise UsageError("--body is the text of a --script: name its runtime")
        if not flags.command:
            raise UsageError("nothing to run: give a command after --, or --script, or --file")
        program, *args = flags.command
        return Subprocess.command(program, *args, env=env, cwd=flags.cwd, fail_on_non_zero=fails)
    if flags.body is None:
        raise UsageError("--script needs --body TEXT, --body @FILE or --body -")
    return Subprocess.script(
        _runtime(flags.script),
        _text(flags.body),
        *(flags.command or ()),
        env=env,
        cwd=flags.cwd,
        fail_on_non_zero=fails,
    )


def _runtime(text: str) -> Runtime | CustomRuntime:
    from solti_store.model import Runtime  # noqa: PLC0415

    match text.split(":"):
        case [("bash" | "python" | "node") as name]:
            return Runtime(name)
        case ["custom", program, flag]:
            return Runtime.custom(program, flag)
    raise UsageError(f"--script: expected bash, python, node or custom:PROGRAM:FLAG, got {text[:40]!r}")


def _text(body: str) -> str:
    if body != "-" and not body.startswith("@"):
        return body
    from solti_store.cli.documents import read_bytes  # noqa: PLC0415

    source = body.removeprefix("@")
    if not source:
        raise UsageError("--body: name a file after @")
    try:
        return read_bytes(source if body != "-" else "-", "--body").decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"--body: {source} is not UTF-8 at byte {error.start}") from None


def _backoff(text: str | None) -> BackoffPolicy:
    from solti_store.model import BackoffPolicy, JitterPolicy  # noqa: PLC0415

    default = BackoffPolicy()
    if text is None:
        return default
    given = parsing.backoff(text)
    return BackoffPolicy(
        jitter=JitterPolicy.parse(given.jitter or ""),
        first_ms=given.first_ms,
        # A first wait beyond the usual maximum is its own.
        max_ms=max(given.first_ms, default.max_ms) if given.max_ms is None else given.max_ms,
        factor=default.factor if given.factor is None else given.factor,
    )
