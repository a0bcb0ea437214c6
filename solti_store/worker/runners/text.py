"""From what a task wrote to what the store keeps."""

from __future__ import annotations

__all__ = ["MAX_ERROR_CHARS", "clean", "last_line", "tail_text"]

MAX_ERROR_CHARS = 1000

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_CONTINUATIONS = 3


def tail_text(data: bytes, limit: int) -> str:
    """The last `limit` bytes as text: from the start of a character, and what is no UTF-8 or is NUL replaced.

    Other control characters stay: colours are part of what a program says. Who shows them takes care.
    """
    if limit == 0:
        return ""
    if len(data) >= limit:
        data = data[-limit:]
        # Perhaps cut in the middle of a character, of which up to three bytes are left.
        for _ in range(_MAX_CONTINUATIONS):
            if not data or data[0] & 0xC0 != 0x80:  # noqa: PLR2004 - 10xxxxxx
                break
            data = data[1:]
    # A decoder makes no lone surrogates, so NUL is all that PostgreSQL could not store.
    return data.decode(errors="replace").replace("\0", _REPLACEMENT)


def last_line(tail: bytes) -> str:
    """The last line that says anything; its end, if it is long."""
    lines = (line.strip() for line in reversed(tail.decode(errors="replace").splitlines()))
    return clean(next((line for line in lines if line), ""))[-MAX_ERROR_CHARS:]


def clean(text: str) -> str:
    """Without what PostgreSQL cannot store (NUL, lone surrogates), nor what would play tricks on a terminal."""
    return "".join(char if char.isprintable() or char in "\t\n" else _REPLACEMENT for char in text)
