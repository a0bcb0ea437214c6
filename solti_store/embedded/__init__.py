"""A private PostgreSQL server for laptops and tests: started on demand, shared by all processes of a user.

Needs the extra `embedded`. Nothing in the core imports this package; the CLI and `TaskStore.open()` do
so only when they are given no URL.
"""

from __future__ import annotations

from importlib.util import find_spec

from solti_store.errors import EmbeddedError

if find_spec("psutil") is None:
    # Not an ImportError: who asks for a private server is told what to install, as for any other failure.
    raise EmbeddedError("psutil is missing: install solti-store[embedded], or give the URL of a server")

from .binaries import find_binaries
from .places import default_data_root
from .server import EmbeddedServer, ServerStatus

__all__ = ["EmbeddedServer", "ServerStatus", "default_data_root", "find_binaries"]
