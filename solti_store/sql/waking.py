"""Who waits for a task, and how they are told that there is one.

A worker that waits holds a lock, shared, by a session of its own; a creator that cannot have it alone knows that
somebody waits, and sends a notice. Nothing is written, and a worker that dies leaves nothing behind.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Boolean, select, text, type_coerce
from sqlalchemy.sql.expression import literal_column

from solti_store.sql.driver import Prepared

__all__ = ["CHANNEL", "LET_GO", "SOMEBODY_WAITS", "WAIT", "WAKE"]

# Of one registry: the number of its table, which no renaming changes. The other half of the key is "solt".
_TABLE: Final = "CAST('solti.tasks' AS regclass)"
_KEY: Final = f"1936682100, CAST(CAST({_TABLE} AS oid) AS integer)"
_CHANNEL: Final = f"'tasks_' || CAST({_TABLE} AS oid)"

#: The channel's name.
CHANNEL: Final = Prepared(text(f"SELECT {_CHANNEL} AS name"))

#: Waits, until `LET_GO`.
WAIT: Final = Prepared(text(f"SELECT pg_advisory_lock_shared({_KEY})"))
LET_GO: Final = Prepared(text(f"SELECT pg_advisory_unlock_shared({_KEY})"))

#: Whether somebody waits; or asks the same at the same microsecond, which costs a needless notice.
SOMEBODY_WAITS: Final = type_coerce(
    literal_column(
        f"CASE WHEN pg_try_advisory_lock({_KEY}) THEN NOT pg_advisory_unlock({_KEY}) ELSE true END",
    ),
    Boolean(),
)

#: Wakes those who wait. Never in the transaction that writes: a notice takes a lock of the whole server until the
#: commit is on the disk, and 16 creators fall from 10,900 to 3,600 a second. What only notifies has nothing to flush.
WAKE: Final = Prepared(select(literal_column(f"pg_notify({_CHANNEL}, '')").label("sent")).where(SOMEBODY_WAITS))
