"""The application's Alembic environment: the task store's tables are none of its business."""

from __future__ import annotations

import os

from alembic import context
from shop import TASKS, metadata  # type: ignore[import-not-found]  # on the path by the .ini
from sqlalchemy import NullPool, create_engine

from solti_store import migrate as solti

engine = create_engine(os.environ["SHOP_URL"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=metadata, include_schemas=True, include_name=solti.theirs(TASKS)
    )
    with context.begin_transaction():
        context.run_migrations()
