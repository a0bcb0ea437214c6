"""A proxy before PostgreSQL that breaks connections at a chosen moment."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from sqlalchemy import make_url

if TYPE_CHECKING:
    from types import TracebackType

When = Literal["before", "after"]


class Proxy:
    """Forwards to the server of `url`; `cut` arms it to break connections that carry a certain text.

    It listens on a Unix socket, and reaches the server by whatever its URL says.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        host = str(parsed.query.get("host") or parsed.host or "localhost")
        port = int(str(parsed.query.get("port") or parsed.port or 5432))
        self._target: str | tuple[str, int] = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        # Short, for a socket's path has 107 bytes; and not pytest's folder, for the same reason.
        self._folder = Path(tempfile.mkdtemp(prefix="solti-proxy-"))
        query = {**parsed.query, "host": str(self._folder), "port": "5432"}
        self.url = parsed.set(host=None, port=None, query=query).render_as_string(hide_password=False)
        self._marker: bytes | None = None
        self._when: When = "after"
        self._left = 0
        self.cuts = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / ".s.PGSQL.5432"))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, marker: str, when: When, *, times: int = 1) -> None:
        """Break the next `times` connections that send `marker`: before it reaches the server, or after it was done.

        After means that the server has answered, and the answer is thrown away.
        """
        self._marker, self._when, self._left = marker.encode(), when, times

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in (self._listener, *self._sockets):
            _close(one)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
                server.connect(self._target)
                self._sockets += [client, server]
                struck = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, struck), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, server, struck), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, struck: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._marker and self._left and self._marker in data:
                    self._left -= 1
                    self.cuts += 1
                    if self._when == "before":
                        break
                    struck.set()
                server.sendall(data)
        if not struck.is_set():
            _close(client)
            _close(server)

    def _answers(self, client: socket.socket, server: socket.socket, struck: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if struck.is_set():
                    break
                client.sendall(data)
        _close(client)
        _close(server)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
