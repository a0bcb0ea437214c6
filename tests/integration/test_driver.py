"""What comes back through `solti_store.sql.driver`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from psycopg.adapt import Loader, PyFormat, Transformer
from psycopg.pq import Format
from sqlalchemy import Engine, create_engine, func, select, text

from solti_store.sql.driver import Prepared
from solti_store.sql.types import ADAPTERS, array_param

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.abc import Buffer

VALUES = {
    "true": True,
    "12::smallint": 12,
    "(-9223372036854775808)::bigint": -(2**63),
    "1.5::float8": 1.5,
    "12.50::numeric": Decimal("12.50"),
    "'ä€'::text": "ä€",
    "'\\x00ff'::bytea": b"\x00\xff",
    "'00000000-0000-0000-0000-0000000000ff'::uuid": UUID(int=255),
    "'2026-11-28 01:02:03.000004+02'::timestamptz": datetime(2026, 11, 27, 23, 2, 3, 4, tzinfo=UTC),
    "'1 day 2 hours'::interval": timedelta(days=1, hours=2),
    "'[1, null]'::jsonb": [1, None],
    "ARRAY['a', NULL]": ["a", None],
    "ARRAY[]::bigint[]": [],
    "NULL::text": None,
}


class _Bytes(Loader):
    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class _BinaryBytes(_Bytes):
    format = Format.BINARY


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    made = create_engine(empty_database_url)
    yield made
    made.dispose()


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN9"])
def test_values_of_each_type_in_a_session_of_any_encoding_and_zone(engine: Engine, encoding: str) -> None:
    columns = ", ".join(f"{sql} AS c{number}" for number, sql in enumerate(VALUES))
    statement = Prepared(text(f"SELECT {columns}".replace(":", "\\:")))
    with engine.connect() as connection:
        connection.execute(text(f"SET client_encoding = '{encoding}'"))
        connection.execute(text("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'german'; SET bytea_output = escape"))
        assert list(statement.one(connection, {})) == list(VALUES.values())


def test_a_batch_goes_out_in_binary(engine: Engine) -> None:
    # As text arrays its specs would take five times the client's time.
    statement = Prepared(select(func.cardinality(array_param("texts", "text")).label("many")))
    given = {"texts": ["a", 'b"']}
    assert Transformer(ADAPTERS).get_dumper(statement.parameters(given)["texts"], PyFormat.AUTO).format is Format.BINARY
    with engine.connect() as connection:
        assert statement.one(connection, given).many == 2


def test_a_type_that_would_come_as_bytes_is_refused(engine: Engine) -> None:
    statement = Prepared(text("SELECT 1 AS fine, CAST('0/1' AS pg_lsn) AS place"))
    with engine.connect() as connection, pytest.raises(TypeError, match="'place'"):
        statement.one(connection, {})


@pytest.mark.parametrize("loader", [_Bytes, _BinaryBytes])
def test_what_a_connections_owner_has_values_made_into_is_not_what_ours_become(
    engine: Engine, loader: type[Loader]
) -> None:
    statement = Prepared(text("SELECT CAST('a' AS text) AS a, 7 AS b, TIMESTAMPTZ '2026-11-28 01\\:00Z' AS c"))
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        for name in ("text", "int4", "timestamptz"):
            driver.adapters.register_loader(name, loader)
        assert list(statement.one(connection, {})) == ["a", 7, datetime(2026, 11, 28, 1, tzinfo=UTC)]
