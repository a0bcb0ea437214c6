"""The private server: found if it is up, started if not, whoever was killed on the way."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote

import psutil

from solti_store.errors import EmbeddedError

from . import binaries as programs_of
from . import cluster, places, postmaster
from .launch import clear_remains, launch
from .programs import tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["EmbeddedServer", "ServerStatus"]

_log = logging.getLogger(__name__)

_POLL: Final = 0.01
_LAUNCHES: Final = 3
_LOG_MAX: Final = 4 * 1024 * 1024  # bytes
_SIGNALS: Final = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# Where the server is found, and that nobody but its owner finds it, is not for settings to decide.
_RESERVED: Final = frozenset(
    {
        "cluster_name",
        "config_file",
        "data_directory",
        "external_pid_file",
        "hba_file",
        "ident_file",
        "listen_addresses",
        "log_destination",
        "logging_collector",
        "port",
        "unix_socket_directories",
        "unix_socket_group",
        "unix_socket_permissions",
    }
)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What `EmbeddedServer.status` saw.

    Attributes:
        state: `stopped`, `starting`, `ready` or `stopping`.
        pid: The server's main process, None when stopped.
        major: The PostgreSQL major version of the data, None when there is none yet.
        data_root: The directory that holds everything.
        log_file: The server's log.
        url: The URL to connect with, None unless ready.
    """

    state: Literal["stopped", "starting", "ready", "stopping"]
    pid: int | None
    major: int | None
    data_root: Path
    log_file: Path
    url: str | None


class EmbeddedServer:
    """A PostgreSQL server of this user, with its data below one directory.

    The object holds no state of the server's: any number of objects, threads and processes may name the
    same data root, and the server outlives them all until one calls `stop`.

    Args:
        data_root: The directory for everything; `default_data_root()` if None. Created if missing.
        settings: Server settings for a start by this object, over those in `postgresql.conf`. A server
            that is already up keeps the ones it was started with.
        binaries: The directory of `initdb` and `postgres`; those of the installed wheel if None.
        timeout: Seconds to wait for a start, a stop, or for other processes that do either.

    Raises:
        EmbeddedError: A setting may not be chosen, or is not a setting's name.
    """

    def __init__(
        self,
        data_root: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
        timeout: float = 60.0,
    ) -> None:
        root = places.default_data_root() if data_root is None else Path(data_root)
        # Resolved, for the name of the socket's directory and the server's arguments derive from it.
        self._root = root.expanduser().absolute().resolve()
        if "\n" in os.fspath(self._root):
            # The pid file gives the path on a line of its own.
            raise EmbeddedError(f"the data directory's path {os.fspath(self._root)!r} has a line break")
        self._data = self._root / "pgdata"
        self._lock = self._root / "lock"
        self._log_file = self._root / "server.log"
        self._binaries = binaries
        self._timeout = timeout
        self._settings = {name.lower(): str(value) for name, value in (settings or {}).items()}
        for name in self._settings:
            if name in _RESERVED or not re.fullmatch(r"[a-z_][a-z0-9_.]*", name):
                raise EmbeddedError(f"the private server's setting {name!r} cannot be chosen")
        digest = hashlib.sha256(os.fsencode(self._data)).hexdigest()
        # Stands in the titles of the server's sub-processes.
        self._cluster_name = f"solti-store-{digest[:12]}"

    @property
    def data_root(self) -> Path:
        """The directory that holds the data, the log and the lock."""
        return self._root

    # --- public operations -------------------------------------------------------------------------

    def ensure_running(self) -> str:
        """Return the server's URL, after starting it (or making its data directory) if need be.

        Cheap when it is up: no lock, no connection.

        Returns:
            An SQLAlchemy URL of the database `solti`, for psycopg.

        Raises:
            EmbeddedError: The server cannot be started; the message ends with its last words.
        """
        url = self._url_if_ready()
        if url is not None:
            return url
        with self._errors("start"):
            places.check_root(self._root)
            with places.locked(self._lock, self._timeout, lambda: self._url_if_ready() is not None) as mine:
                if mine and self._url_if_ready() is None:
                    self._start()
        url = self._url_if_ready()
        if url is None:
            raise EmbeddedError(f"the private server ended as soon as it was up:\n{self._log_tail(0)}")
        return url

    def stop(self, mode: Literal["fast", "smart", "immediate"] = "fast") -> bool:
        """Stop the server, for everybody who uses it.

        Args:
            mode: `fast` ends the sessions, `smart` waits for them, `immediate` leaves a crash recovery
                to the next start.

        Returns:
            Whether there was one to stop.

        Raises:
            EmbeddedError: It did not stop within the timeout.
        """
        with self._errors("stop"):
            if not self._lock.exists():
                return False
            with places.locked(self._lock, self._timeout):
                return self._stop(_SIGNALS[mode])

    def status(self) -> ServerStatus:
        """Look, without a lock and without starting anything.

        Raises:
            EmbeddedError: The data directory is no data directory.
        """
        claims = postmaster.read_pid_file(self._data)
        process = postmaster.verified(claims, self._data) if claims is not None else None
        state: Literal["stopped", "starting", "ready", "stopping"] = "stopped"
        if claims is not None and process is not None:
            state = "starting"
            if claims.state in {"ready", "stopping"}:
                state = "ready" if claims.state == "ready" else "stopping"
        with self._errors("inspect"):
            return ServerStatus(
                state=state,
                pid=process.pid if process is not None else None,
                major=cluster.major_of(self._data),
                data_root=self._root,
                log_file=self._log_file,
                url=self._url_if_ready(),
            )

    def destroy(self) -> None:
        """Stop the server and remove its data, for good; a missing data root is fine.

        Only what this class made is removed. A data root that holds other files stays, with them.

        Raises:
            EmbeddedError: The directory is not one of these, or the server did not stop.
        """
        with self._errors("destroy"):
            if not self._root.exists():
                return
            if not self._lock.is_file():
                raise EmbeddedError(f"{self._root} holds no private server (no lock): nothing was removed")
            self._destroy()

    def _destroy(self) -> None:
        with places.locked(self._lock, self._timeout):
            cluster.major_of(self._data)
            self._stop(signal.SIGINT)
            cluster.sweep(self._root)
            shutil.rmtree(places.socket_dir(self._root), ignore_errors=True)
            for entry in list(self._root.iterdir()):
                if entry == self._data or entry.name.startswith(programs_of.BINARIES_PREFIX):
                    shutil.rmtree(entry)
                elif entry.name.startswith(self._log_file.name):
                    entry.unlink()
            # Last, and while it is held: who waits for it sees that its file is gone and opens a new one.
            self._lock.unlink()
            with contextlib.suppress(OSError):
                self._root.rmdir()

    # --- looking -----------------------------------------------------------------------------------

    def _url_if_ready(self) -> str | None:
        """Return the URL of a server that is up and reachable; some 0.1 ms."""
        claims = postmaster.read_pid_file(self._data)
        if claims is None or claims.state != "ready" or postmaster.verified(claims, self._data) is None:
            return None
        try:
            if not places.socket_usable(Path(claims.socket_dir), self._data.stat().st_uid):
                return None
            self._bound_log()
        except OSError:
            return None
        # The slash of a path may stand in a query; all else that could end it may not.
        host = quote(claims.socket_dir, safe="/")
        return f"postgresql+psycopg://{cluster.DATABASE}@/{cluster.DATABASE}?host={host}&port={places.PORT}"

    def _bound_log(self) -> None:
        """Empty a log that outgrew its bound: the server appends, so it goes on from the new end."""
        if self._log_file.exists() and self._log_file.stat().st_size > _LOG_MAX:
            os.truncate(self._log_file, 0)

    def _log_tail(self, offset: int) -> str:
        try:
            with self._log_file.open("rb") as file:
                file.seek(max(offset, file.seek(0, os.SEEK_END) - 16384))
                return tail(file.read())
        except OSError as error:
            return f"  (its log cannot be read: {error})"

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """Turn what the operating system refuses (a full disk, a closed directory) into our error."""
        try:
            yield
        except OSError as error:
            raise EmbeddedError(f"cannot {verb} the private server in {self._root}: {error}") from error

    # --- starting; all of it under the lock -----------------------------------------------------------

    def _start(self) -> None:
        deadline = time.monotonic() + self._timeout
        account = places.server_account(self._data)
        self._refuse_foreign_directory()
        bindir, major = programs_of.reachable(
            self._binaries if self._binaries is not None else programs_of.find_binaries(), self._root, account
        )
        cluster.sweep(self._root)
        written_by = cluster.major_of(self._data)
        if written_by is None:
            _log.info("creating a PostgreSQL %s data directory in %s", major, self._data)
            cluster.create(self._data, bindir, account, self._settings)
        elif written_by != major:
            raise EmbeddedError(
                f"the data in {self._data} was written by PostgreSQL {written_by} and the installed programs "
                f"are PostgreSQL {major}: install the programs of {written_by} and dump it, or point "
                f"{places.DATA_VARIABLE} to another directory"
            )
        sockets = places.socket_dir(self._root)
        places.prepare_socket_dir(sockets, account)
        settings = {
            **self._settings,
            "cluster_name": self._cluster_name,
            "listen_addresses": "",
            "log_destination": "stderr",
            "logging_collector": "off",
            "port": str(places.PORT),
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
        }
        offset = 0
        for _ in range(_LAUNCHES):
            # Another starter may have been killed after it launched a server: take that one.
            process = postmaster.running(self._data)
            if process is None:
                clear_remains(self._data, sockets, self._cluster_name)
                self._bound_log()
                process, offset = launch(bindir / "postgres", self._data, account, settings, self._log_file)
            if process is not None and self._settled(process, deadline, offset):
                _log.info("the private PostgreSQL server runs as process %s", process.pid)
                return
        raise EmbeddedError(f"the private server does not start:\n{self._log_tail(offset)}")

    def _refuse_foreign_directory(self) -> None:
        """Keep out of a directory that is used for something else: `destroy` would be at home there."""
        if self._data.exists():
            return
        known = ("lock", "run", "server.log", cluster.INIT_PREFIX, programs_of.BINARIES_PREFIX)
        others = [entry.name for entry in self._root.iterdir() if not entry.name.startswith(known)]
        if others:
            self._lock.unlink()
            raise EmbeddedError(f"{self._root} holds other files ({min(others)!r}): name an empty directory")

    def _settled(self, process: psutil.Process, deadline: float, offset: int) -> bool:
        """Wait until the server is ready (True) or gone (False)."""
        invalid_since: float | None = None
        while postmaster.alive(process):
            if self._url_if_ready() is not None:
                return True
            now = time.monotonic()
            if now > deadline:
                raise EmbeddedError(
                    f"the private server (process {process.pid}) is not ready after {self._timeout:.0f} s; "
                    f"after a crash it may still be recovering:\n{self._log_tail(offset)}"
                )
            claims = postmaster.read_pid_file(self._data)
            usable = claims is not None and claims.pid == process.pid and claims.state != "ready"
            # Ready, yet its socket was removed; or up, and its pid file was damaged. The first is unreachable
            # for ever, the second would shut itself down within a minute. A second of doubt is for the
            # moments before it wrote the file.
            invalid_since = None if usable else (invalid_since or now)
            if invalid_since is not None and now - invalid_since > 1.0:
                with contextlib.suppress(psutil.Error):
                    if postmaster.same_command(process, self._data):
                        process.send_signal(signal.SIGINT)
                invalid_since = None
            time.sleep(_POLL)
        return False

    def _stop(self, number: signal.Signals) -> bool:
        process = postmaster.running(self._data)
        if process is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if postmaster.wait_gone([process], self._timeout):
            raise EmbeddedError(f"the private server (process {process.pid}) did not stop within {self._timeout:.0f} s")
        _log.info("stopped the private PostgreSQL server, process %s", process.pid)
        return True
