"""Which database: the URL given, the one in SOLTI_STORE_URL, or the private embedded server."""

from __future__ import annotations

import os

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from solti_store.errors import StoreUnavailable

__all__ = ["URL_VARIABLE", "is_embedded", "resolve_url", "start_embedded"]

URL_VARIABLE = "SOLTI_STORE_URL"


def is_embedded(url: str | URL | None) -> bool:
    """Whether `resolve_url(url)` means the embedded server."""
    return not (url or os.environ.get(URL_VARIABLE))


def start_embedded() -> str:
    """The URL of the user's private server, started if need be.

    Raises:
        EmbeddedError: It cannot be started.
    """
    # Imported here, because most deployments have a server and no extra `embedded`.
    from solti_store.embedded import EmbeddedServer  # noqa: PLC0415

    return EmbeddedServer().ensure_running()


def resolve_url(url: str | URL | None = None) -> URL:
    """The URL to connect to, with psycopg as its driver; starts the embedded server if none is given.

    Args:
        url: `postgresql://…`; None or empty means SOLTI_STORE_URL, and without that the embedded server.

    Raises:
        StoreUnavailable: The URL is malformed or is not PostgreSQL's.
        EmbeddedError: The embedded server is needed and cannot be started.
    """
    given = url or os.environ.get(URL_VARIABLE)
    if not given:
        given = start_embedded()
    try:
        parsed = make_url(given)
    except (ArgumentError, ValueError):
        # Without the text: it may hold a password.
        raise StoreUnavailable("the database URL is malformed; expected postgresql://user@host:port/name") from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise StoreUnavailable(f"a database URL starts with postgresql://, not {parsed.drivername}://")
