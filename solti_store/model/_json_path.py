"""Where in a JSON text a parser gave up, as a path of keys and indexes."""

import json
import re
from typing import NamedTuple, Self

__all__ = ["Place"]

# The parser tells the place only inside its message; should its wording change, the path is empty.
_LINE_AND_COLUMN = re.compile(r"at line (\d+) column (\d+)$")
_SURROGATE = re.compile("[\ud800-\udfff]")
# A parser notices a lone surrogate escape at most two escapes (12 bytes) further on.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}.{0,7}\Z", re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{},:]|[^\s"\[\]{},:]+', re.DOTALL)
_MAX_STEPS = 8


class Place(NamedTuple):
    """The place at which parsing ended.

    Attributes:
        path: The keys and indexes that lead to it, outermost first, at most eight.
        is_surrogate: Whether half of a surrogate pair stands there, which is no text.
    """

    path: list[str]
    is_surrogate: bool

    @classmethod
    def of(cls, document: str | bytes | bytearray, message: str) -> Self:
        """Find the place in a text that was refused as a whole.

        Args:
            document: The JSON text.
            message: The parser's message, which ends in `at line L column C` if the text was parsed at all.
        """
        if isinstance(document, str):
            if half := _SURROGATE.search(document):
                # The parser takes UTF-8, and this text has no such form.
                return cls(_path(document[: half.end()].encode(errors="surrogatepass")), is_surrogate=True)
            document = document.encode()
        if (found := _LINE_AND_COLUMN.search(message)) is None:
            return cls([], is_surrogate=False)
        line, column = int(found[1]), int(found[2])
        start = 0
        for _ in range(line - 1):
            start = document.find(b"\n", start) + 1
        end = start + column
        # Without the offending character itself: a bracket there would count as closing its container.
        head = bytes(document[: max(end - 1, 0)])
        nearby = bytes(document[max(end - 13, 0) : end])
        return cls(_path(head), is_surrogate=_SURROGATE_ESCAPE.search(nearby) is not None)


def _path(head: bytes) -> list[str]:
    # An open array is its current index, an open object its latest key (None before it).
    # `head` may end anywhere inside a token, so a half string counts as the key or value it would be.
    open_containers: list[int | bytes | None] = []
    for token in _TOKEN.findall(head):
        if token == b"[":
            open_containers.append(0)
        elif token == b"{":
            open_containers.append(None)
        elif not open_containers:
            continue
        elif token in {b"]", b"}"}:
            open_containers.pop()
        elif token == b",":
            index = open_containers[-1]
            open_containers[-1] = index + 1 if isinstance(index, int) else None
        elif token[:1] == b'"' and open_containers[-1] is None:
            open_containers[-1] = token
    steps = [step for step in open_containers[:_MAX_STEPS] if step is not None]
    return [_key(step) if isinstance(step, bytes) else str(step) for step in steps]


def _key(token: bytes) -> str:
    # Python's parser, unlike the strict one, reads lone surrogates; they must not get into a message.
    text = token.decode(errors="replace")
    try:
        key = str(json.loads(text, strict=False))
    except ValueError:
        key = text.strip('"')
    return key.encode(errors="surrogatepass").decode(errors="replace")
