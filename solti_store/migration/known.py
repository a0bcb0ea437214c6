"""What of the server's own a migration may use without a question; whatever is not here is not known.

Lists of what is harmless, not of what is not: those would have a gap for everything that nobody thought of.
"""

from __future__ import annotations

__all__ = ["FUNCTIONS", "PLPGSQL", "SERIALS", "SETTINGS", "STEADY", "TYPES"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Functions that lock and change nothing, and return soon.
FUNCTIONS = _words(
    """
    abs aclexplode age array_agg array_append array_cat array_length array_position array_positions array_prepend
    array_remove array_replace array_to_json array_to_string array_upper ascii avg bit_length bool_and bool_or btrim
    cardinality ceil ceiling char_length character_length chr clock_timestamp concat concat_ws count
    current_database current_schema current_schemas current_setting date_bin date_part date_trunc decode dense_rank
    encode exp extract first_value floor format gen_random_uuid generate_series generate_subscripts
    has_database_privilege has_schema_privilege has_table_privilege hashtext initcap isfinite json_agg
    json_array_elements json_array_elements_text json_array_length json_build_array json_build_object json_each
    json_each_text json_extract_path json_extract_path_text json_object_agg json_object_keys json_typeof jsonb_agg
    jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object
    jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object_agg
    jsonb_object_keys jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_populate_record jsonb_set jsonb_strip_nulls jsonb_to_recordset jsonb_typeof
    justify_days justify_hours justify_interval lag last_value lead left length ln log lower lpad ltrim make_date
    make_interval make_timestamp make_timestamptz max md5 min mod now numrange octet_length overlay percentile_cont
    percentile_disc pg_backend_pid pg_column_size pg_current_snapshot pg_current_xact_id pg_get_userbyid pg_has_role
    pg_typeof position power quote_ident quote_literal quote_nullable random range_agg rank regexp_count regexp_like
    regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table repeat replace reverse
    right round row_number row_to_json rpad rtrim sha224 sha256 sha384 sha512 sign split_part sqrt starts_with
    statement_timestamp stddev string_agg string_to_array string_to_table strpos substr substring sum timezone
    to_char to_date to_hex to_json to_jsonb to_number to_regclass to_regnamespace to_regrole to_regtype to_timestamp
    transaction_timestamp translate trim_array trunc tstzrange unnest upper uuidv7 variance version width_bucket
    """
)

#: Those that are the same for all rows of a statement.
STEADY = frozenset({"current_setting", "now", "pg_current_xact_id", "statement_timestamp", "transaction_timestamp"})

#: Types that have no CHECK of their own, as a domain may.
TYPES = _words(
    """
    bit bool box bpchar bytea char cidr circle date daterange float4 float8 inet int2 int4 int4range int8 int8range
    interval json jsonb jsonpath line lseg macaddr macaddr8 money name numeric numrange oid path pg_lsn pg_snapshot
    point polygon regclass regnamespace regproc regrole regtype text tid time timestamp timestamptz timetz tsquery
    tsrange tstzrange tsvector uuid varbit varchar xid xid8 xml
    """
)

#: Not types, but columns with a sequence.
SERIALS = frozenset({"bigserial", "serial", "serial2", "serial4", "serial8", "smallserial"})

#: Settings of a session that have nothing to do with locks, or with what is checked.
SETTINGS = _words(
    """
    application_name check_function_bodies client_min_messages jit maintenance_work_mem
    max_parallel_maintenance_workers role search_path statement_timeout timezone work_mem
    """
)

#: Statements of PL/pgSQL whose SQL is in the block for all to read.
PLPGSQL = frozenset(
    f"PLpgSQL_stmt_{kind}"
    for kind in ("block", "if", "loop", "while", "exit", "assign", "return", "raise", "perform", "execsql", "commit")
)
