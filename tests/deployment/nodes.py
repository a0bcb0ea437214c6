"""PostgreSQL servers on loopback ports, with replication: started here, and ended by their own processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from solti_store.embedded import binaries, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PATIENCE_S = 180.0
USER = "solti"

# Kill -9 takes processes here, never the machine: nothing needs to reach a disk.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "60", "shared_buffers": "64MB"}


def eventually(happens: Callable[[], Any], what: str, log: Path | None = None) -> Any:
    """Poll until it returns something true; errors of a database that is not there yet count as not yet."""
    end = time.monotonic() + PATIENCE_S
    last: object = None
    while time.monotonic() < end:
        try:
            if result := happens():
                return result
        except (psycopg.OperationalError, OSError) as error:
            last = error
        time.sleep(0.02)
    words = log.read_text(errors="replace")[-3000:] if log is not None and log.exists() else ""
    raise AssertionError(f"{what} did not happen within {PATIENCE_S:.0f} s ({last})\n{words}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has."""
    with suppress(OSError):
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [int(one.getsockname()[1]) for one in sockets]
        for one in sockets:
            one.close()
        return ports
    raise AssertionError("no free ports")


class Ground:
    """A folder, a system user and the programs: what servers of one test stand on.

    Everything that `spawn` started is killed in `close`, and by the kernel should this process be killed.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="solti-nodes-"))
        self.folder.chmod(0o711)  # the servers of root run as another user
        self.account = places.server_account(self.folder / "none")
        self.programs = self._reachable(binaries.find_binaries())
        self._started: list[subprocess.Popen[bytes]] = []

    def _reachable(self, bindir: Path) -> Path:
        """The programs where the account can run them; all of them, for a replica and Patroni need more than two."""
        try:
            binaries.major_version(bindir, self.account)
        except PermissionError:
            package = bindir.parents[1]
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.is_dir():
                    shutil.copytree(part, self.folder / "programs" / part.name, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", self.folder / "programs"], check=True)
            return self.folder / "programs" / bindir.relative_to(package.parent)
        return bindir

    def mkdir(self, name: str) -> Path:
        """A folder of the account's own."""
        made = self.folder / name
        made.mkdir(mode=0o700)
        self.own(made)
        return made

    def own(self, path: Path) -> None:
        """Give a file, or a folder with all in it, to the account."""
        if self.account.switch:
            for entry in (path, *path.rglob("*")):
                os.chown(entry, self.account.uid, self.account.gid, follow_symlinks=False)

    def run(self, *argv: object, cwd: Path = Path("/")) -> None:
        """Run a program to its end, as the account."""
        done = subprocess.run(self._as_account(argv), capture_output=True, cwd=cwd, check=False)
        assert done.returncode == 0, f"{argv}: {done.stdout!r} {done.stderr!r}"

    def spawn(
        self, *argv: object, log: Path, env: Mapping[str, str] | None = None, as_account: bool = True
    ) -> subprocess.Popen[bytes]:
        """Start a process of its own session, whose words go to `log`."""
        with log.open("ab") as words:
            process = subprocess.Popen(
                self._as_account(argv) if as_account else [*_GUARD, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                cwd="/",
                env=env,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _as_account(self, argv: tuple[object, ...]) -> list[str]:
        # Only root switches, and only on Linux, where there is setpriv.
        who = [f"--reuid={self.account.uid}", f"--regid={self.account.gid}", "--clear-groups"]
        return [*_GUARD, *(who if self.account.switch else ()), *map(str, argv)]

    def close(self) -> None:
        """End what was started, the latest first, and remove the folder."""
        for process in reversed(self._started):
            kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)


# The kernel kills the process when this one ends, however that comes; not on every system.
_GUARD = ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []


@contextmanager
def ground() -> Iterator[Ground]:
    """Ground for the servers of one test."""
    made = Ground()
    try:
        yield made
    finally:
        made.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill -9, and wait for its end."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.wait()


class Node:
    """A server.

    Args:
        ground: What it stands on.
        name: Its name, and that of its data directory.
        programs: Of which PostgreSQL; None is the newest there is.
        **settings: Of the server, over those of all.
    """

    def __init__(self, ground: Ground, name: str, *, programs: Path | None = None, **settings: str) -> None:
        self.ground = ground
        self.programs = programs or ground.programs
        self.name = name
        self.port = free_ports(1)[0]
        self.data = ground.folder / name
        self.log = ground.folder / f"{name}.log"
        self.settings = SETTINGS | settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its database."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/postgres"

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A bare connection, in autocommit mode."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
            **options,
        )

    def ask(self, statement: str) -> Any:
        """The first value of a statement's first row."""
        with self.connect() as connection:
            row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def create(self) -> None:
        """Make the data directory."""
        self.ground.mkdir(self.name)
        init = ["-U", USER, "-E", "UTF8", "--no-locale", "--auth", "trust", "--no-sync", "--data-checksums"]
        self.ground.run(self.programs / "initdb", "-D", self.data, *init)

    def clone(self, primary: Node) -> None:
        """Make the data directory a copy of a running primary's, which it will follow."""
        self.ground.mkdir(self.name)
        source = f"host=127.0.0.1 port={primary.port} user={USER} application_name={self.name}"
        backup = ["-X", "stream", "--checkpoint=fast", "--no-sync", "-R", "-d", source]
        self.ground.run(self.programs / "pg_basebackup", "-D", self.data, *backup)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.launch()
        eventually(lambda: self.ask("SELECT true"), f"the start of {self.name}", self.log)

    def launch(self) -> None:
        """Start the server's process."""
        fixed = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        options = [word for name, value in (self.settings | fixed).items() for word in ("-c", f"{name}={value}")]
        self.process = self.ground.spawn(self.programs / "postgres", "-D", self.data, *options, log=self.log)

    def kill(self) -> None:
        """Kill -9 of all its processes, the main one first: what happens when a machine goes."""
        assert self.process is not None
        others = psutil.Process(self.process.pid).children()
        kill(self.process)
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        """A fast, orderly shutdown."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)

    def follows(self, primary: Node) -> bool:
        """Whether it has replayed all that the primary has written by now."""
        position = primary.ask("SELECT pg_current_wal_insert_lsn()")
        return bool(self.ask(f"SELECT pg_last_wal_replay_lsn() >= '{position}'"))

    def promote(self) -> None:
        """Make a standby the primary."""
        assert self.ask("SELECT pg_promote(true, 60)")


def url_of(*nodes: Node) -> str:
    """The URL of whichever of them is the primary."""
    hosts = "&".join(f"host=127.0.0.1:{node.port}" for node in nodes)
    return f"postgresql+psycopg://{USER}@/postgres?{hosts}&target_session_attrs=read-write&connect_timeout=3"
