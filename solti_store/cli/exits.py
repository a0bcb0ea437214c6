"""How a command ends: exit codes, and an error in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from enum import IntEnum
from typing import Any

from solti_store.errors import (
    AlreadyExists,
    AlreadyRunning,
    EmbeddedError,
    FeedExpired,
    FeedUnavailable,
    InvalidCursor,
    ModelError,
    NotFound,
    OutcomeUnknown,
    SchemaMismatch,
    SlotBusy,
    SlotQueueFull,
    SoltiStoreError,
    StoreUnavailable,
    VersionConflict,
)

__all__ = ["DEBUG_VARIABLE", "Exit", "PipeClosedError", "UsageError", "message_of", "report"]

DEBUG_VARIABLE = "SOLTI_STORE_DEBUG"


class Exit(IntEnum):
    """The exit codes; `docs/cli.md` documents them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    UNKNOWN = 6
    AILING = 7
    BUG = 70
    INTERRUPTED = 130


class UsageError(Exception):
    """The command line, or a document given to it, asks for something that makes no sense."""


class PipeClosedError(Exception):
    """Whoever read our output wants no more of it."""


# How a disk says that it takes no more. What reads and writes files for other ends has errors of its own.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_CODES: tuple[tuple[type[SoltiStoreError], Exit], ...] = (
    (ModelError, Exit.USAGE),
    (InvalidCursor, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (AlreadyExists, Exit.CONFLICT),
    (AlreadyRunning, Exit.CONFLICT),
    (VersionConflict, Exit.CONFLICT),
    (SlotBusy, Exit.CONFLICT),
    (SlotQueueFull, Exit.CONFLICT),
    (FeedExpired, Exit.CONFLICT),
    (FeedUnavailable, Exit.UNAVAILABLE),
    (StoreUnavailable, Exit.UNAVAILABLE),
    (SchemaMismatch, Exit.UNAVAILABLE),
    (EmbeddedError, Exit.UNAVAILABLE),
    (OutcomeUnknown, Exit.UNKNOWN),
)


def message_of(error: SoltiStoreError) -> str:
    """The error's message as one line, with the field it is about."""
    message = str(error)
    if not isinstance(error, EmbeddedError):
        # Drivers put hints on lines of their own. The embedded server's last words are a log, and stay one.
        message = " ".join(message.split())
    field: str = getattr(error, "field", "")
    return f"{message} (at {field})" if field and field not in message else message


def report(error: BaseException) -> int:
    """Say on stderr what went wrong.

    Returns:
        The exit code.
    """
    if isinstance(error, PipeClosedError | KeyboardInterrupt):
        return Exit.OK if isinstance(error, PipeClosedError) else Exit.INTERRUPTED
    if isinstance(error, UsageError):
        return _say(str(error), Exit.USAGE)
    if isinstance(error, SoltiStoreError):
        code = next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)
        return _say(message_of(error), code)
    if isinstance(error, OSError) and error.errno in _FULL:
        return _say(f"cannot write the output: {error.strerror}", Exit.FAILED)
    if hasattr(error, "format_message"):
        return _say(_click_message(error), getattr(error, "exit_code", Exit.USAGE))
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    shown = " ".join(str(error).split())
    return _say(
        f"{type(error).__name__}: {shown[:300]}; this is a bug: run with {DEBUG_VARIABLE}=1 for the traceback",
        Exit.BUG,
    )


def _say(message: str, code: int) -> int:
    # Where nobody can be told, the exit code has to do.
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr)  # noqa: T201 - this is where errors go
    return int(code)


def _click_message(error: Any) -> str:  # noqa: ANN401
    # The parser's own errors, by their shape: Typer vends them from click or, since 0.26, from a private copy of it.
    text = " ".join(error.format_message().split()).rstrip(".")
    text = text[:1].lower() + text[1:]
    context = getattr(error, "ctx", None)
    return text if context is None else f"{text}; see '{context.command_path} --help'"
