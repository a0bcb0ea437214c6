"""Selectors as SQL, where keys and values are any strings: the same as in Python, and never part of a statement."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, not_, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateTable
from strategies import selectors, texts

from solti_store.model import LabelOperator, LabelRequirement, LabelSelector, Selector, requirements_of
from solti_store.sql.driver import Prepared
from solti_store.sql.selectors import Shape, matching, parameters, shape_of
from solti_store.sql.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from solti_store.sql.driver import Row

Requirements = tuple[LabelRequirement, ...]
LabelSet = dict[str, str]

labelled = Table(
    "labelled",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("labels", JSONB, nullable=False),
    prefixes=["TEMPORARY"],
)

HOSTILE = [
    "",
    " ",
    "'",
    "''; DROP TABLE solti.tasks; --",
    '"',
    '"}',
    "\\",
    "\\'",
    "\\u0041",
    "a.b",
    "$.a",
    "{a}",
    "[0]",
    "{",
    "%",
    "%s",
    "%%",
    "%(label_key_0)s",
    ":name",
    ":label_key_0",
    "$1",
    "?",
    "?|",
    "NULL",
    "null",
    "\n",
    "\x01\x7f",
    "\u2028",
    "é",
    "e\u0301",  # the same to a reader, another string
    "😀",
    "\ufeff",
    "\uff21",  # full width
]
HUGE = ["k" * 100_000, "'é\"" * 40_000, "9" * 140_000, "0" * 140_000 + "7", "-" + "0" * 100_000, "0" * 100_000 + "x"]


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """Integers around the limits, with signs and zeros in front; some beyond."""
    sign, zeros = draw(st.sampled_from(["", "", "-", "+"])), draw(st.sampled_from(["", "", "0", "0" * 30]))
    digits = draw(st.sampled_from([0, 10**17, 10**18, 10**19, 2**63]) | st.integers(0, 9)) + draw(st.integers(-2, 2))
    return f"{sign}{zeros}{abs(digits)}"


broken_numbers = st.sampled_from(
    ["+", "-", "--5", "+-5", "5-5", " 5", "5 ", "5\n", "\n5", "5\n6", "1_0", "5.0", "5e1", "0x5", "٣", "²", "NaN", "Ⅳ"]
)
odd_texts = st.sampled_from(HOSTILE) | texts
values = st.one_of(odd_texts, numbers(), numbers(), broken_numbers, st.sampled_from(HUGE))


def is_int64(number: str) -> bool:
    return -(2**63) <= int(number) < 2**63


@st.composite
def requirement(
    draw: st.DrawFn, keys: st.SearchStrategy[str], listed: st.SearchStrategy[str], bounds: st.SearchStrategy[str]
) -> LabelRequirement:
    operator = draw(st.sampled_from(LabelOperator))
    some: list[str] = []
    if operator in {LabelOperator.IN, LabelOperator.NOT_IN}:
        some = draw(st.lists(listed, min_size=1, max_size=4))
    elif operator in {LabelOperator.GREATER_THAN, LabelOperator.LESS_THAN}:
        some = [draw(bounds)]
    elif operator not in {LabelOperator.EXISTS, LabelOperator.DOES_NOT_EXIST}:
        some = [draw(listed)]
    return LabelRequirement(draw(keys), operator, tuple(some))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[LabelSet], list[Requirements]]:
    """Sets of labels and selectors that draw on the same few keys and values, so that they meet."""
    keys = st.sampled_from(draw(st.lists(odd_texts | st.sampled_from(HUGE), min_size=1, max_size=4, unique=True)))
    pool = st.sampled_from(draw(st.lists(values, min_size=1, max_size=6, unique=True)))
    bounds = numbers().filter(is_int64)
    label_sets = draw(st.lists(st.dictionaries(keys, pool | numbers(), max_size=4), min_size=1, max_size=8))
    found = draw(st.lists(st.lists(requirement(keys, pool, bounds), max_size=4).map(tuple), min_size=1, max_size=4))
    return label_sets, found


LEGAL_KEYS = st.sampled_from(["a", "in", "notin", "a.b", "e.com/k"])
LEGAL_VALUES = st.sampled_from(["", "a", "in", "5", "05", "1_0", "x.y", "9223372036854775807", "9223372036854775808"])


@st.composite
def text_worlds(draw: st.DrawFn) -> tuple[list[LabelSet], list[Requirements]]:
    """The same for selectors that went through text."""
    some = st.lists(
        requirement(LEGAL_KEYS, LEGAL_VALUES, LEGAL_VALUES.filter(str.isdigit).filter(is_int64)), max_size=4
    )
    found = [Selector.parse(",".join(map(str, drawn))).requirements for drawn in draw(st.lists(some, max_size=4))]
    label_sets = st.dictionaries(LEGAL_KEYS, LEGAL_VALUES | st.sampled_from(["-6", "+6", "-9223372036854775809"]))
    return draw(st.lists(label_sets, min_size=1, max_size=8)), found


@st.composite
def structured_worlds(draw: st.DrawFn) -> tuple[list[LabelSet], list[Requirements]]:
    """The same for structured selectors, with labels that meet or nearly meet them."""
    label_sets: list[LabelSet] = [{}]
    found = []
    for document in draw(st.lists(selectors(), min_size=1, max_size=3)):
        structured = LabelSelector.from_dict(document)
        found.append(requirements_of(structured))
        wanted = dict(structured.match_labels)
        for expression in structured.match_expressions:
            wanted[expression.key] = draw(st.sampled_from(expression.values or ("other",)))
        label_sets += [wanted, {name: value for name, value in wanted.items() if draw(st.booleans())}]
    return label_sets, found


@cache
def statement(shape: Shape) -> Prepared:
    clause = matching(shape, labelled.c.labels)
    # The negation twice: SQLAlchemy rewrites some of them, and a subquery's column keeps PostgreSQL's own.
    inner = select(labelled.c.number, clause.label("holds")).subquery()
    return Prepared(
        select(
            labelled.c.number,
            clause.label("holds"),
            not_(clause).label("fails"),
            not_(inner.c.holds).label("fails_too"),
        )
        .join(inner, inner.c.number == labelled.c.number)
        .order_by(labelled.c.number)
    )


def fill(connection: Connection, label_sets: Sequence[LabelSet]) -> None:
    rows = [{"number": number, "labels": labels} for number, labels in enumerate(label_sets)]
    connection.execute(insert(labelled), rows)


def judged(connection: Connection, requirements: Requirements) -> list[Row]:
    return statement(shape_of(requirements)).all(connection, parameters(requirements))


def check(connection: Connection, label_sets: Sequence[LabelSet], selected: Sequence[Requirements]) -> None:
    fill(connection, label_sets)
    for requirements in selected:
        rows = judged(connection, requirements)
        expected = [all(condition.matches(labels) for condition in requirements) for labels in label_sets]
        assert [row.holds for row in rows] == expected  # lists of bools: a NULL would be a None
        assert [row.fails for row in rows] == [not holds for holds in expected]
        assert [row.fails_too for row in rows] == [not holds for holds in expected]
    connection.rollback()


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    # Prepared from the first execution on, so that plans are kept and the mode of planning means something.
    engine = create_engine(database_url, connect_args={"prepare_threshold": 0})
    with engine.connect() as opened:
        opened.execute(CreateTable(labelled))
        opened.commit()
        yield opened
    engine.dispose()


# The table is the same for all examples, and empty again after each.
EXAMPLES = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan"])
@EXAMPLES
@given(world=worlds())
def test_any_strings(connection: Connection, mode: str, world: tuple[list[LabelSet], list[Requirements]]) -> None:
    connection.execute(text(f"SET plan_cache_mode = {mode}"))
    check(connection, *world)


@EXAMPLES
@given(world=text_worlds())
def test_text_selectors(connection: Connection, world: tuple[list[LabelSet], list[Requirements]]) -> None:
    check(connection, *world)


@EXAMPLES
@given(world=structured_worlds())
def test_structured_selectors(connection: Connection, world: tuple[list[LabelSet], list[Requirements]]) -> None:
    check(connection, *world)


# --- integers -----------------------------------------------------------------------------------

NUMBERS = [
    *("0", "-0", "+0", "7", "007", "-7", "+7"),
    *("99999999999999999", "-99999999999999999", "999999999999999999", "-999999999999999999", "1000000000000000000"),
    *(f"{sign}{zeros}{2**63 + step}" for sign in ("", "+", "-") for zeros in ("", "00") for step in range(-2, 3)),
    *("99999999999999999999", "-99999999999999999999", "0" * 140_000 + "7", "-" + "0" * 140_000 + "7"),
    *("9" * 140_000, "-" + "9" * 140_000, "0" * 140_000, "0" * 140_000 + "_", "0" * 17 + "\n", "0" * 30 + "\n"),
    *("", "+", "-", "+-7", "--7", "7-7", " 7", "7 ", "7\n", "\n7", "a\n7", "7\nb", "\t7", "7\r", "\xa07", "1_000"),
    *("0x1F", "0b1", "0o7", "7.0", "7.", ".7", "7e0", "1e400", "NaN", "Infinity", "null", "٣", "\uff17", "²", "7\x7f"),
]
BOUNDS = ["0", "-0", "6", "7", "8", "-7", str(10**17), *(f"{2**63 - step}" for step in (1, 2, 3)), str(-(2**63))]


def test_integers_at_every_limit(connection: Connection) -> None:
    check(
        connection,
        [{}, {"other": "7"}, *({"x": number} for number in NUMBERS)],
        [
            (LabelRequirement("x", operator, (bound,)),)
            for operator in (LabelOperator.GREATER_THAN, LabelOperator.LESS_THAN)
            for bound in BOUNDS
        ],
    )


# --- one statement for everything of a shape ----------------------------------------------------


def of_every_kind(key: str, *listed: str) -> list[LabelRequirement]:
    return [
        LabelRequirement(key, LabelOperator.EQUALS, listed[:1]),
        LabelRequirement(key, LabelOperator.DOUBLE_EQUALS, listed[:1]),
        LabelRequirement(key, LabelOperator.NOT_EQUALS, listed[:1]),
        LabelRequirement(key, LabelOperator.IN, listed),
        LabelRequirement(key, LabelOperator.NOT_IN, listed),
        LabelRequirement(key, LabelOperator.EXISTS),
        LabelRequirement(key, LabelOperator.DOES_NOT_EXIST),
        LabelRequirement(key, LabelOperator.GREATER_THAN, ("3",)),
        LabelRequirement(key, LabelOperator.LESS_THAN, ("3",)),
    ]


def text_for(requirements: Sequence[LabelRequirement]) -> str:
    return Prepared(select(labelled.c.number).where(matching(shape_of(requirements), labelled.c.labels))).text


@pytest.mark.parametrize("hostile", [*HOSTILE, *HUGE], ids=lambda value: f"{ascii(value)[:20]}({len(value)})")
def test_no_key_or_value_is_part_of_a_statement(connection: Connection, hostile: str) -> None:
    for plain, wild in zip(
        of_every_kind("plain", "a", "b"), of_every_kind(hostile, hostile, hostile + "'"), strict=True
    ):
        assert text_for([wild]) == text_for([plain])
        assert statement(shape_of([wild])) is statement(shape_of([plain]))
        assert parameters([wild]).keys() == parameters([plain]).keys()
    everything = of_every_kind(hostile, hostile, hostile + "'")
    assert text_for(everything) == text_for(of_every_kind("plain", "a", "b"))
    near = [{}, {hostile: hostile}, {hostile: hostile + "'"}, {hostile + "'": hostile}, {hostile: "5"}, {"x": hostile}]
    check(connection, near, [(condition,) for condition in everything])


def shape(selector: str) -> Shape:
    return shape_of(Selector.parse(selector).requirements)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a=1,!b", "!c,d=2"),
        ("a=1", "a==1"),
        ("a=1", "a in (1,1)"),
        ("a=1", "a=1,b==2,c in (3)"),
        ("a,!b", "a,b,c,!d,!e"),
        ("a!=1", "a notin (1,2)"),
        ("a in (1,2)", "a in (1,2,3,4)"),
        ("z>1,a<1", "a>1,z<1"),
    ],
)
def test_what_shares_a_statement(one: str, other: str) -> None:
    assert shape(one) == shape(other)
    assert hash(shape(one)) == hash(shape(other))


def test_what_needs_statements_of_its_own() -> None:
    texts = ["", "a=1", "a in (1,2)", "a,b", "!a", "a!=1", "a!=1,a!=2", "a>1", "a<1", "a>1,a>2"]
    assert len({shape(selector) for selector in texts}) == len(texts)
    assert shape("") == ()


def test_every_order_means_the_same(connection: Connection) -> None:
    requirements = Selector.parse("a in (1,2),a notin (2,3),b>4,c<5,d=1,!e,f,g!=7").requirements
    label_sets = [
        {"a": "1", "b": "5", "c": "4", "d": "1", "f": ""},
        {"a": "2", "b": "5", "c": "4", "d": "1", "f": ""},
        {"a": "1", "b": "4", "c": "5", "d": "1", "f": ""},
        {"a": "1", "b": "5", "c": "4", "d": "1", "f": "", "g": "7"},
    ]
    assert shape_of(requirements) == shape_of(requirements[::-1])
    check(connection, label_sets, [requirements, requirements[::-1], requirements[3:] + requirements[:3]])


@pytest.mark.parametrize("selector", ["a=1,a=2", "a=1,a==1", "a=1,a in (1)", "a=2,a=1,b=1", "a,!a", "a>1,a<1"])
def test_several_conditions_on_one_key(connection: Connection, selector: str) -> None:
    check(connection, [{}, {"a": "1"}, {"a": "2"}, {"a": "1", "b": "1"}], [Selector.parse(selector).requirements])


def test_a_parameter_never_has_the_name_of_a_column() -> None:
    requirements = of_every_kind("a", "b", "c")
    prepared = statement(shape_of(requirements))
    names = set(prepared.statement.compile().params)
    assert set(parameters(requirements)) <= names
    assert not names & {column.name for table in metadata.tables.values() for column in table.columns}


def test_an_operator_that_is_folded_is_no_shape() -> None:
    with pytest.raises(KeyError):
        matching((LabelOperator.DOUBLE_EQUALS,), labelled.c.labels)


# --- plans --------------------------------------------------------------------------------------


# Not the statement that asks.
OURS = "FROM pg_prepared_statements WHERE statement LIKE '%labelled%holds%' AND statement NOT LIKE '%pg_prepared%'"


def test_generic_and_custom_plans_agree(connection: Connection) -> None:
    label_sets = [{}, *({key: value} for key in ("x", "y'") for value in ("", "a", "b", "2", "5", "9" * 30))]
    conditions = of_every_kind("x", "a", "b") + of_every_kind("y'", "5", "2")
    fill(connection, label_sets)
    found: dict[str, Any] = {}
    for mode in ("force_generic_plan", "force_custom_plan"):
        connection.execute(text(f"SET plan_cache_mode = {mode}"))
        found[mode] = [judged(connection, (condition,)) for condition in conditions]
    assert found["force_generic_plan"] == found["force_custom_plan"]
    generic, custom = connection.execute(text(f"SELECT min(generic_plans), min(custom_plans) {OURS}")).one()
    # Each was planned both ways, and so the modes were really in effect.
    assert generic >= 1
    assert custom >= 1


def test_documents_are_parsed_once_and_not_for_each_row(connection: Connection) -> None:
    requirements = Selector.parse("a=1,b in (1,2)").requirements
    fill(connection, [{"a": "1", "b": "2"}])
    assert [row.holds for row in judged(connection, requirements)] == [True]
    types = connection.execute(text(f"SELECT parameter_types::text[] {OURS}")).scalar_one()
    # A generic plan would cast a parameter of type text in each row.
    assert sorted(types) == ["character varying", "jsonb", "jsonb"]
