"""One condition on one label, in the operators of the text selector."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from solti_store.model._label_syntax import int64_of
from solti_store.model._problems import invalid, shown
from solti_store.model.selector import RunnerSelector, SelectorOperator

__all__ = ["LabelOperator", "LabelRequirement", "requirements_of"]


class LabelOperator(StrEnum):
    """How a requirement looks at a label.

    `=` and `==` mean the same and stay apart, because the canonical form keeps what was written.
    """

    EQUALS = "="
    DOUBLE_EQUALS = "=="
    NOT_EQUALS = "!="
    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    DOES_NOT_EXIST = "!"
    GREATER_THAN = "gt"
    LESS_THAN = "lt"


_PRESENCE = frozenset({LabelOperator.EXISTS, LabelOperator.DOES_NOT_EXIST})
_LISTS = frozenset({LabelOperator.IN, LabelOperator.NOT_IN})
_ORDERINGS = frozenset({LabelOperator.GREATER_THAN, LabelOperator.LESS_THAN})

_SYMBOLS = {LabelOperator.GREATER_THAN: ">", LabelOperator.LESS_THAN: "<"}

_STRUCTURED = {
    SelectorOperator.IN: LabelOperator.IN,
    SelectorOperator.NOT_IN: LabelOperator.NOT_IN,
    SelectorOperator.EXISTS: LabelOperator.EXISTS,
    SelectorOperator.DOES_NOT_EXIST: LabelOperator.DOES_NOT_EXIST,
}


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One condition on one label; immutable, compared by content.

    Keys and values may be any strings that PostgreSQL can store, so that structured selectors fit too.
    `Selector` asks for more.

    Attributes:
        key: The label's key.
        operator: How to compare.
        values: De-duplicated and in byte order, whatever order they are given in. None for `EXISTS` and
            `DOES_NOT_EXIST`, one or more for `IN` and `NOT_IN`, one for the others; for `GREATER_THAN` and
            `LESS_THAN` it is the text of a 64-bit integer.

    Raises:
        Invalid: The operator is unknown, the number of values does not fit it, a bound is no 64-bit integer, or
            a key or value is no string, or holds NUL or a lone surrogate.
    """

    key: str
    operator: LabelOperator
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text("key", self.key)
        if not isinstance(self.operator, LabelOperator):
            raise invalid(f"label requirement has an unknown operator, got {shown(self.operator)}", "operator")
        if not isinstance(self.values, tuple):
            raise invalid(f"label requirement values must be a tuple, got {shown(self.values)}", "values")
        for value in self.values:
            _check_text("values", value)
        if len(self.values) > 1:
            # Code point order is UTF-8 byte order, which is the contract's.
            object.__setattr__(self, "values", tuple(sorted(set(self.values))))
        self._check_values()

    def _check_values(self) -> None:
        count = len(self.values)
        if self.operator in _PRESENCE:
            fits, need = count == 0, "no values"
        elif self.operator in _LISTS:
            fits, need = count > 0, "at least one value"
        else:
            fits, need = count == 1, "exactly one value"
        if not fits:
            raise invalid(f"label requirement with operator {self.operator} must have {need}", "values")
        if self.operator in _ORDERINGS and int64_of(self.values[0]) is None:
            raise invalid(
                f"label requirement with operator {self.operator} must have a 64-bit integer, "
                f"got {shown(self.values[0])}",
                "values",
            )

    @property
    def bound(self) -> int:
        """What `GREATER_THAN` and `LESS_THAN` compare with.

        Raises:
            TypeError: The operator is another one.
        """
        if self.operator not in _ORDERINGS or (number := int64_of(self.values[0])) is None:
            raise TypeError(f"a requirement with operator {self.operator} has no bound")
        return number

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels meets the condition; `>` and `<` never hold for what is no 64-bit integer."""
        value = labels.get(self.key)
        match self.operator:
            case LabelOperator.EXISTS:
                return value is not None
            case LabelOperator.DOES_NOT_EXIST:
                return value is None
            case LabelOperator.EQUALS | LabelOperator.DOUBLE_EQUALS | LabelOperator.IN:
                return value in self.values
            case LabelOperator.NOT_EQUALS | LabelOperator.NOT_IN:
                return value not in self.values  # a missing label is not among them
            case LabelOperator.GREATER_THAN | LabelOperator.LESS_THAN:
                number = None if value is None else int64_of(value)
                if number is None:
                    return False
                return number > self.bound if self.operator is LabelOperator.GREATER_THAN else number < self.bound

    def __str__(self) -> str:
        """The requirement as text, which the grammar reads back if key and values are legal in it."""
        match self.operator:
            case LabelOperator.EXISTS:
                return self.key
            case LabelOperator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case LabelOperator.IN | LabelOperator.NOT_IN:
                return f"{self.key} {self.operator} ({','.join(self.values)})"
            case _:
                return f"{self.key}{_SYMBOLS.get(self.operator, self.operator)}{self.values[0]}"


def requirements_of(selector: RunnerSelector) -> tuple[LabelRequirement, ...]:
    """The conditions of a structured selector: those of matchLabels first, then matchExpressions in their order.

    Label syntax is not asked for, as little as the structured selector does.
    """
    return (
        *(LabelRequirement(key, LabelOperator.EQUALS, (value,)) for key, value in selector.match_labels.items()),
        *(
            LabelRequirement(expression.key, _STRUCTURED[expression.operator], expression.values)
            for expression in selector.match_expressions
        ),
    )


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str):
        raise invalid(f"label requirement {field} must be of strings, got {shown(text)}", field)
    if "\0" in text:
        raise invalid("label requirement must not contain NUL, which PostgreSQL cannot store", field)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid("label requirement must not contain a lone surrogate", field) from None
