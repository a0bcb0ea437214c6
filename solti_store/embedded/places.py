"""Where the server's files live, who owns them, and the lock that guards their making."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
import re
import socket
import stat
import struct
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from solti_store.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "DATA_VARIABLE",
    "PORT",
    "USER_VARIABLE",
    "Account",
    "check_root",
    "default_data_root",
    "listener",
    "locked",
    "prepare_socket_dir",
    "server_account",
    "socket_dir",
    "socket_usable",
]

DATA_VARIABLE = "SOLTI_STORE_DATA"
USER_VARIABLE = "SOLTI_STORE_OS_USER"
# Only a part of the socket's file name: no TCP port is opened.
PORT = 5432

_ROOTS_DATA = Path("/var/lib/solti-store")
_SUN_PATH_MAX = 103  # bytes; Linux has 107, macOS 103
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_LOCK_POLL = 0.02


def default_data_root() -> Path:
    """Return the directory that holds the private server when none is named.

    `SOLTI_STORE_DATA` if set, else `solti-store` in the user's data directory. For root it is
    `/var/lib/solti-store`: root's server runs as another system user, to whom `/root` (mode 0700), where
    root's own data directory is, is closed.

    Raises:
        EmbeddedError: `platformdirs` is not installed.
    """
    named = os.environ.get(DATA_VARIABLE)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return _ROOTS_DATA
    try:
        import platformdirs  # noqa: PLC0415 - an extra's dependency, and not needed above
    except ImportError:
        raise EmbeddedError(
            "platformdirs is missing: install solti-store[embedded], or give the URL of a server"
        ) from None
    return Path(platformdirs.user_data_dir("solti-store", appauthor=False))


@dataclass(frozen=True, slots=True)
class Account:
    """The system user the server runs as.

    Attributes:
        name: Its name, for messages.
        uid: Its number; the data directory belongs to it.
        gid: Its primary group.
        switch: Whether it is another user than the caller's.
    """

    name: str
    uid: int
    gid: int
    switch: bool


def server_account(data_directory: Path) -> Account:
    """Choose the system user that runs the server.

    The caller, unless that is root, which the server refuses: then the owner of a data directory that
    exists (a `postgres` user that a package brings later must not orphan it), else the user that
    `SOLTI_STORE_OS_USER` names, else `postgres`, else `nobody`.

    Raises:
        EmbeddedError: There is no such user, or it is root again.
    """
    if os.geteuid() != 0:
        return Account(name=str(os.geteuid()), uid=os.geteuid(), gid=os.getegid(), switch=False)
    named = os.environ.get(USER_VARIABLE)
    try:
        owner = data_directory.stat().st_uid if data_directory.exists() else None
        if owner is not None:
            entry = pwd.getpwuid(owner)
        elif named:
            entry = pwd.getpwnam(named)
        else:
            entry = _first_user("postgres", "nobody")
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL does not run as root and there is no system user for it (looked for "
            f"{named or 'postgres, nobody'}): name one in {USER_VARIABLE}"
        ) from None
    if owner == 0:
        raise EmbeddedError(
            f"{data_directory} belongs to root, as which PostgreSQL does not run: give it to a system user"
        )
    if entry.pw_uid == 0:
        raise EmbeddedError(f"PostgreSQL does not run as root: name another system user in {USER_VARIABLE}")
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, switch=True)


def _first_user(*names: str) -> pwd.struct_passwd:
    for name in names[:-1]:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return pwd.getpwnam(names[-1])


# --- the socket's directory ------------------------------------------------------------------------


def socket_dir(root: Path) -> Path:
    """Return the directory of the server's socket: the same for every process that names this data root.

    Inside the data root if its path is short and plain: libpq splits a host at commas, the server splits
    its own setting at commas and blanks, and the kernel ends at 107 bytes. Else a short name in `/tmp`
    (not `$TMPDIR`, which differs between a login and a cron job; nor `$XDG_RUNTIME_DIR`, which goes away
    at logout while the server stays).
    """
    inside = root / "run"
    socket_path = f"{inside}/.s.PGSQL.{PORT}"
    if _PLAIN.fullmatch(socket_path) and len(os.fsencode(socket_path)) <= _SUN_PATH_MAX:
        return inside
    digest = hashlib.sha256(b"%d\0%b" % (os.geteuid(), os.fsencode(root))).hexdigest()
    return Path(f"/tmp/solti-store-{digest[:20]}")  # noqa: S108 - owner and mode are checked before use


def prepare_socket_dir(path: Path, account: Account) -> None:
    """Make the socket's directory, private to the server's user; refuse one that somebody else made.

    In `/tmp` anyone can take the name first, as a directory of their own or as a link: the check is on
    what is there after the attempt to create it.

    Raises:
        EmbeddedError: It is not a directory of ours.
        OSError: It cannot be made.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    facts = path.lstat()
    # Ours, not yet the account's: a starter was killed between mkdir and chown.
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (account.uid, os.geteuid()):
        raise EmbeddedError(
            f"{path} should be the private directory of the server's socket, but "
            f"{'uid ' + str(facts.st_uid) + ' owns it' if stat.S_ISDIR(facts.st_mode) else 'is no directory'}"
            ": remove it, or choose another data directory"
        )
    if facts.st_uid != account.uid:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
    if stat.S_IMODE(facts.st_mode) != 0o700:  # noqa: PLR2004 - the usual notation of a mode
        path.chmod(0o700)


def socket_usable(directory: Path, owner: int) -> bool:
    """Tell whether the directory is private to its owner and holds a socket of that owner."""
    try:
        folder, file = directory.lstat(), (directory / f".s.PGSQL.{PORT}").lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(folder.st_mode)
        and folder.st_uid == file.st_uid == owner
        and folder.st_mode & 0o077 == 0
        and stat.S_ISSOCK(file.st_mode)
    )


def listener(directory: Path) -> int | None:
    """Ask the kernel who listens on the socket.

    Returns:
        The process's number; 0 when there is one whose number is not told (another container's, or this
        is not Linux); None when nobody listens.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as client:
        client.settimeout(1.0)
        try:
            client.connect(f"{directory}/.s.PGSQL.{PORT}")
            if not hasattr(socket, "SO_PEERCRED"):
                return 0
            answer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError:  # its queue is full: somebody does listen
            return 0
    pid: int = struct.unpack("3i", answer)[0]
    return pid


# --- the data root and its lock --------------------------------------------------------------------


def check_root(root: Path) -> None:
    """Make the data root if it is missing; refuse one of another user.

    A root process writes files into it: in a directory of another user that would follow the links they
    planted there.

    Raises:
        EmbeddedError: It belongs to somebody else, or is no directory.
        OSError: It cannot be made.
    """
    # The server's user, when it is another one, has to pass through; it holds no names worth hiding.
    root.parent.mkdir(parents=True, exist_ok=True)
    try:
        root.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
    except FileExistsError:
        if not root.is_dir():
            raise EmbeddedError(f"the data directory {root} is a file") from None
    else:
        if os.geteuid() == 0:
            root.chmod(0o711)  # whatever the umask
    owner = root.stat().st_uid
    if owner != os.geteuid():
        raise EmbeddedError(
            f"the data directory {root} belongs to uid {owner}, not to uid {os.geteuid()}: "
            f"run as that user, or name another directory in {DATA_VARIABLE}"
        )


@contextmanager
def locked(path: Path, timeout: float, until: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock file while the block runs; the kernel releases it when the holder dies.

    The descriptor is not inherited, so a server started inside the block does not keep the lock.

    Args:
        path: The lock file, created if missing.
        timeout: Seconds to wait for other holders.
        until: Asked between attempts; once true, there is nothing left to lock for.

    Yields:
        Whether the lock is held; False when `until` came true first.

    Raises:
        EmbeddedError: Somebody else held it for the whole time.
        OSError: The file cannot be opened.
    """
    deadline = time.monotonic() + timeout
    handle = -1
    try:
        while True:
            if handle < 0:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            else:
                if _is_current(handle, path):
                    break
                # Somebody destroyed the data root between open and flock: this is a lock on nothing.
                os.close(handle)
                handle = -1
                continue
            if until():
                yield False
                return
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"{_holder(handle)} has been starting or stopping the server for {timeout:.0f} s (lock file {path})"
                )
            time.sleep(_LOCK_POLL)
        with suppress(OSError):  # for the message below only: a full disk may yet be served
            os.ftruncate(handle, 0)
            os.pwrite(handle, b"%d\n" % os.getpid(), 0)
        yield True
    finally:
        if handle >= 0:
            os.close(handle)


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    pid = os.pread(handle, 32, 0).decode(errors="replace").strip()
    return f"process {pid}" if pid else "another process"
