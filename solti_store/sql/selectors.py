"""Label requirements as a condition on a jsonb column of labels.

A statement depends on a selector's shape alone: keys and values are bound, so that nothing in them is ever SQL and few
statements serve all selectors. What they cost, in ns a row over a bare scan (100,000 rows of six labels, PostgreSQL 18,
generic plans; custom ones differ where it says so):

    one label equals     `@>` 107, `->> =` 78, `-> =` on jsonb 155
    three labels equal   one `@>` 112, three `->> =` 113
    in 3 / 30 / 300      `object ? (->>)` 81 / 107 / 119, `->> = ANY(text[])` 93 / 315 / 2127 (custom: 91 / 86 / 83),
                         `@> ANY(jsonb[])` 283 / 2489 / 24274
    label present        `?` 69, `?&` of one 78, `->> IS NOT NULL` 71; three of them 163, `?&` of three 109
    integer compared     the CASE below 278, all of it in numeric 425, `pg_input_is_valid` 297 (and not before 16)
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Numeric,
    Text,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal_column,
    not_,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

from solti_store.model.requirement import LabelOperator, LabelRequirement
from solti_store.sql.types import array_param

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Cast

__all__ = ["Shape", "matching", "parameters", "shape_of"]

Shape: TypeAlias = tuple[LabelOperator, ...]
"""What a statement needs to know of some requirements: their kinds, in one order.

`=`, `==` and `in` of one value are EQUALS, `!=` and `notin` are NOT_IN. EQUALS, EXISTS and DOES_NOT_EXIST stand for
any number of requirements, the other members for one each.
"""

# The order in the statement, hence mostly of evaluation: what leaves few rows first, the dear one last.
_ORDER: Final = (
    LabelOperator.EQUALS,
    LabelOperator.IN,
    LabelOperator.EXISTS,
    LabelOperator.DOES_NOT_EXIST,
    LabelOperator.NOT_IN,
    LabelOperator.GREATER_THAN,
    LabelOperator.LESS_THAN,
)
_FOLDED: Final = frozenset({LabelOperator.EQUALS, LabelOperator.EXISTS, LabelOperator.DOES_NOT_EXIST})


def shape_of(requirements: Iterable[LabelRequirement]) -> Shape:
    """The shape of requirements that must all hold; their order does not matter. Empty when there are none."""
    return tuple(operator for operator, _ in _members(requirements))


def parameters(requirements: Iterable[LabelRequirement]) -> dict[str, Any]:
    """What to bind in a statement with `matching(shape_of(requirements), ...)`.

    All names begin with `label_`; those of several requirements are numbered by their places in the shape.
    """
    result: dict[str, Any] = {}
    for number, (operator, members) in enumerate(_members(requirements)):
        first = members[0]
        match operator:
            case LabelOperator.EQUALS:
                result["label_equal"] = _equal(members)
            case LabelOperator.EXISTS:
                result["label_present"] = _keys(members)
            case LabelOperator.DOES_NOT_EXIST:
                result["label_absent"] = _keys(members)
            case LabelOperator.GREATER_THAN | LabelOperator.LESS_THAN:
                result |= {f"label_key_{number}": first.key, f"label_bound_{number}": first.bound}
            case _:
                listed = _json(dict.fromkeys(first.values))
                result |= {f"label_key_{number}": first.key, f"label_values_{number}": listed}
    return result


def matching(shape: Shape, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether labels meet requirements of this shape, as `LabelRequirement.matches` has it.

    True or false and never NULL, so it may be negated. It may stand in a statement several times, on several
    columns, but for one selector only: two would share their parameters' names.

    Args:
        shape: Made by `shape_of`.
        labels: A jsonb expression that is not NULL and an object of strings.

    Raises:
        KeyError: The shape has an operator that `shape_of` folds into another.
    """
    return and_(true(), *(_CLAUSES[operator](number, labels) for number, operator in enumerate(shape)))


def _members(requirements: Iterable[LabelRequirement]) -> list[tuple[LabelOperator, list[LabelRequirement]]]:
    """The shape's operators, each with the requirements it stands for."""
    found: dict[LabelOperator, list[LabelRequirement]] = {operator: [] for operator in _ORDER}
    for requirement in requirements:
        found[_canonical(requirement)].append(requirement)
    result = []
    for operator, members in found.items():
        groups = ([members] if members else []) if operator in _FOLDED else [[member] for member in members]
        result += [(operator, group) for group in groups]
    return result


def _canonical(requirement: LabelRequirement) -> LabelOperator:
    match requirement.operator:
        case LabelOperator.EQUALS | LabelOperator.DOUBLE_EQUALS | LabelOperator.IN:
            return LabelOperator.EQUALS if len(requirement.values) == 1 else LabelOperator.IN
        case LabelOperator.NOT_EQUALS | LabelOperator.NOT_IN:
            return LabelOperator.NOT_IN
        case operator:
            return operator


# --- parameters ---------------------------------------------------------------------------------


def _keys(members: list[LabelRequirement]) -> list[str]:
    return [member.key for member in members]


def _equal(members: list[LabelRequirement]) -> str:
    wanted: dict[str, str] = {}
    for member in members:
        if wanted.setdefault(member.key, member.values[0]) != member.values[0]:
            return "[]"  # no object contains an array, as no label has two values
    return _json(wanted)


def _json(document: Mapping[str, str | None]) -> str:
    # Not escaped: a database in SQL_ASCII takes any bytes, but no escape of a character beyond ASCII.
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


class _JsonText(UserDefinedType[str]):
    """The type of a JSON text that is a jsonb parameter on the wire.

    `json_param` is of type text there: under a generic plan its cast would parse the document again for each row, 245
    ns instead of 107. SQLAlchemy's own JSONB would put the engine's serializer between.
    """

    cache_ok = True


def _jsonb(name: str) -> Cast[Any]:
    return cast(bindparam(name, type_=_JsonText()), JSONB)


# --- clauses ------------------------------------------------------------------------------------


def _value(number: int, labels: ColumnElement[Any]) -> ColumnElement[str]:
    """The label a requirement is about; NULL when it is missing."""
    return labels.op("->>", return_type=Text())(bindparam(f"label_key_{number}", type_=Text()))


def _equals(_number: int, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    # For a single label `->>` is faster by a quarter, but this is one statement for any number of them, and the
    # only form that a GIN index could serve.
    return labels.bool_op("@>")(_jsonb("label_equal"))


def _is_present(_number: int, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    return labels.bool_op("?&")(array_param("label_present", "text"))


def _is_absent(_number: int, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    return not_(labels.bool_op("?|")(array_param("label_absent", "text")))


def _is_listed(number: int, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    """NULL for a missing label.

    The list is an object, for its keys are searched by halves: an array, of text or in jsonb, is walked for each row.
    (PostgreSQL hashes a text array that is a constant of the plan, which a generic plan's never is.)
    """
    return _jsonb(f"label_values_{number}").bool_op("?")(_value(number, labels))


def _is_in(number: int, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    return _is_listed(number, labels).is_(true())


def _is_not_in(number: int, labels: ColumnElement[Any]) -> ColumnElement[bool]:
    return _is_listed(number, labels).is_not(true())


# What `int64_of` reads. PostgreSQL's own input takes white space too, and from 16 on `1_000` and `0x1F`.
# Its `$` is the very end, without a line feed before it.
_INTEGER: Final[ColumnElement[str]] = literal_column("'^[+-]?[0-9]+$'")
# Twice as dear, hence for the long ones only. Leading zeros are free in number, as bigint's and numeric's input have
# it; without this a label of 131,073 digits would overflow numeric and fail the statement.
_DIGITS_19: Final[ColumnElement[str]] = literal_column("'^[+-]?0*[0-9]{1,19}$'")
_SURE_BYTES: Final[ColumnElement[int]] = literal_column("18")  # a sign and 17 digits, or 18 digits: within 64 bits
_INT64_MIN: Final[ColumnElement[Any]] = literal_column("(-9223372036854775808)")
_INT64_MAX: Final[ColumnElement[Any]] = literal_column("9223372036854775807")


def _compares(number: int, labels: ColumnElement[Any], *, greater: bool) -> ColumnElement[bool]:
    """The casts stand behind CASE: operands of AND may be evaluated in any order, and a cast that fails raises."""
    value = _value(number, labels)
    bound = bindparam(f"label_bound_{number}", type_=BigInteger())
    short, long = cast(value, BigInteger), cast(value, Numeric)
    if greater:
        holds, holds_long = short > bound, and_(long > bound, long <= _INT64_MAX)
    else:
        holds, holds_long = short < bound, and_(long < bound, long >= _INT64_MIN)
    in_range = case(
        (func.octet_length(value) <= _SURE_BYTES, holds),
        (value.regexp_match(_DIGITS_19), holds_long),
        else_=false(),
    )
    return case((value.regexp_match(_INTEGER), in_range), else_=false())


_CLAUSES: Final[dict[LabelOperator, Callable[[int, ColumnElement[Any]], ColumnElement[bool]]]] = {
    LabelOperator.EQUALS: _equals,
    LabelOperator.IN: _is_in,
    LabelOperator.EXISTS: _is_present,
    LabelOperator.DOES_NOT_EXIST: _is_absent,
    LabelOperator.NOT_IN: _is_not_in,
    LabelOperator.GREATER_THAN: partial(_compares, greater=True),
    LabelOperator.LESS_THAN: partial(_compares, greater=False),
}
