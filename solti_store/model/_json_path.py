"""Where in a JSON text a parser gave up, as a path of keys and indexes."""

import re
from itertools import pairwise

__all__ = ["path_at"]

# The parser tells the place only inside its message; should its wording change, the path is empty.
_PLACE = re.compile(r"at line (\d+) column (\d+)$")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{},:]|[^\s"\[\]{},:]+', re.DOTALL)
_MAX_STEPS = 8


def path_at(document: object, message: str) -> list[str]:
    """The path of the value at which parsing ended, outermost first, at most eight steps.

    Args:
        document: The JSON text as str, bytes or bytearray; anything else has no path.
        message: The parser's message, ending in `at line L column C`.
    """
    place = _PLACE.search(message)
    if place is None or not isinstance(document, str | bytes | bytearray):
        return []
    data = document.encode(errors="surrogatepass") if isinstance(document, str) else bytes(document)
    line, column = int(place[1]), int(place[2])
    start = 0
    for _ in range(line - 1):
        start = data.find(b"\n", start) + 1
    return _path(data[: start + column])


def _path(head: bytes) -> list[str]:
    # An open array is its current index, an open object its latest string (None before the first).
    # `head` may end anywhere inside a token, so a half string counts as the key or value it would be.
    open_containers: list[int | bytes | None] = []
    tokens = [match.group() for match in _TOKEN.finditer(head)]
    for token, following in pairwise([*tokens, b""]):
        if token == b"[":
            open_containers.append(0)
        elif token == b"{":
            open_containers.append(None)
        elif token in (b"]", b"}"):
            if open_containers:
                open_containers.pop()
        elif not open_containers:
            continue
        elif token == b",":
            index = open_containers[-1]
            open_containers[-1] = index + 1 if isinstance(index, int) else None
        elif token[:1] == b'"' and not isinstance(open_containers[-1], int) and following in (b":", b""):
            if open_containers[-1] is None:
                open_containers[-1] = token.strip(b'"')
    steps = [step for step in open_containers[:_MAX_STEPS] if step is not None]
    return [step.decode(errors="replace") if isinstance(step, bytes) else str(step) for step in steps]
