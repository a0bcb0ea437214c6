"""Label selectors as text: Kubernetes' grammar, its canonical form, and where a text breaks it.

    selector    = [ requirement { "," requirement } ]
    requirement = key | "!" key | key ( "=" | "==" | "!=" ) [ value ] | key ( ">" | "<" ) integer
                | key ( "in" | "notin" ) "(" [ value ] { "," [ value ] } ")"

White space may stand between any two of these, and is exactly space, tab, CR and LF.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Self

from solti_store.errors import InvalidSelector
from solti_store.model._label_syntax import int64_of, key_problem, value_problem
from solti_store.model._problems import PREFIX, invalid, printable, shown
from solti_store.model.requirement import LabelOperator, LabelRequirement, requirements_of
from solti_store.model.selector import RunnerSelector

__all__ = ["Selector"]

_SUBJECT: Final = "label selector: "
_FOUND_CHARS: Final = 40


@dataclass(frozen=True, slots=True, repr=False)
class Selector:
    """Requirements on labels that must all hold; with none of them it matches everything.

    Always canonical, so equal selectors have equal text and the other way round: `parse(str(s)) == s`.

    Attributes:
        requirements: In byte order of their keys; those of one key in the order they were given.

    Raises:
        Invalid: A key or value breaks Kubernetes' label syntax.
    """

    requirements: tuple[LabelRequirement, ...] = ()

    def __post_init__(self) -> None:
        for requirement in self.requirements:
            _check_syntax(requirement.key, requirement.values)
        # Legal keys are ASCII, so this is byte order.
        object.__setattr__(self, "requirements", tuple(sorted(self.requirements, key=attrgetter("key"))))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The selector of a text such as `tier in (gold,silver),env!=prod,!deprecated,prio>3`.

        Takes time in proportion to the text.

        Raises:
            InvalidSelector: The text breaks the grammar; the message and `position` say where.
            Invalid: It is no string.
        """
        if not isinstance(text, str):
            raise invalid(f"{_SUBJECT}must be a string, got {shown(text)}")
        return cls(tuple(_Parser(text).requirements()))

    @classmethod
    def from_structured(cls, selector: RunnerSelector) -> Self:
        """The same conditions as a structured selector's: matchLabels as `=`, then matchExpressions.

        Raises:
            Invalid: A key or value breaks Kubernetes' label syntax, which only the text form asks for; `field`
                is its path in the structured selector. `requirements_of` takes those too.
        """
        for key, value in selector.match_labels.items():
            _check_syntax(key, (value,), "matchLabels", "matchLabels")
        for number, expression in enumerate(selector.match_expressions):
            path = f"matchExpressions.{number}"
            _check_syntax(expression.key, expression.values, f"{path}.key", f"{path}.values")
        return cls(requirements_of(selector))

    @property
    def is_empty(self) -> bool:
        """Whether there is no requirement at all."""
        return not self.requirements

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels meets every requirement."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        """The canonical text."""
        return ",".join(map(str, self.requirements))

    def __repr__(self) -> str:
        return f"Selector.parse({str(self)!r})"


def _check_syntax(key: str, values: tuple[str, ...], key_field: str = "", values_field: str = "") -> None:
    if problem := key_problem(key):
        raise invalid(f"{_SUBJECT}key {shown(key)}: {problem}", key_field)
    for value in values:
        if problem := value_problem(value):
            raise invalid(f"{_SUBJECT}value {shown(value)}: {problem}", values_field)


# Every text is a chain of these: a token behind white space, or the end. Anything that is neither white space nor a
# symbol is a word, to be judged as key or value; so an exotic space or a control character is an error of its word.
_SYMBOL_CHARS: Final = "=!(),<>"
_token_at = re.compile(r"[ \t\r\n]*+(==|!=|[=!(),<>]|[^ \t\r\n=!(),<>]++|\Z)").match

_OPERATORS: Final = {
    "=": LabelOperator.EQUALS,
    "==": LabelOperator.DOUBLE_EQUALS,
    "!=": LabelOperator.NOT_EQUALS,
    "in": LabelOperator.IN,
    "notin": LabelOperator.NOT_IN,
    ">": LabelOperator.GREATER_THAN,
    "<": LabelOperator.LESS_THAN,
}
_END: Final = ""


class _Parser:
    """Recursive descent with one token in hand, though nothing in the grammar recurs.

    Keywords are words like others here: `in` is an operator only where an operator stands.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = 0
        self._advance()

    def _advance(self) -> None:
        found = _token_at(self._text, self._next)
        if found is None:
            raise AssertionError("the token pattern matches at any position")
        self._lexeme = found[1]
        self._at = found.start(1)
        self._next = found.end()

    def requirements(self) -> Iterator[LabelRequirement]:
        """All of the text's requirements, in its order."""
        if self._lexeme == _END:
            return
        yield self._requirement()
        while self._lexeme != _END:
            self._take(",", "',' or the end")
            yield self._requirement()

    def _requirement(self) -> LabelRequirement:
        if self._lexeme == "!":
            self._advance()
            return LabelRequirement(self._key("a key"), LabelOperator.DOES_NOT_EXIST)
        key = self._key("a key or '!'")
        if self._lexeme in {_END, ","}:
            return LabelRequirement(key, LabelOperator.EXISTS)
        operator = _OPERATORS.get(self._lexeme)
        if operator is None:
            raise self._expected("an operator, ',' or the end")
        self._advance()
        match operator:
            case LabelOperator.IN | LabelOperator.NOT_IN:
                return LabelRequirement(key, operator, self._list())
            case LabelOperator.GREATER_THAN | LabelOperator.LESS_THAN:
                return LabelRequirement(key, operator, (self._integer(),))
            case _:
                value = "" if self._lexeme in {_END, ","} else self._value("a value")
                return LabelRequirement(key, operator, (value,))

    def _list(self) -> tuple[str, ...]:
        self._take("(", "'('")
        values: list[str] = []
        while True:
            values.append("" if self._lexeme in {",", ")"} else self._value("a value, ',' or ')'"))
            if self._lexeme == ")":
                self._advance()
                return tuple(values)
            self._take(",", "',' or ')'")

    def _key(self, what: str) -> str:
        if not self._is_word():
            raise self._expected(what)
        if problem := key_problem(self._lexeme):
            raise self._refused("key", problem)
        key = self._lexeme
        self._advance()
        return key

    def _value(self, what: str) -> str:
        if not self._is_word():
            raise self._expected(what)
        if problem := value_problem(self._lexeme):
            raise self._refused("value", problem)
        value = self._lexeme
        self._advance()
        return value

    def _integer(self) -> str:
        if self._is_word() and not value_problem(self._lexeme) and int64_of(self._lexeme) is None:
            raise self._refused("value", "what '>' and '<' compare with must be a 64-bit integer")
        return self._value("an integer")

    def _take(self, symbol: str, what: str) -> None:
        if self._lexeme != symbol:
            raise self._expected(what)
        self._advance()

    def _is_word(self) -> bool:
        return self._lexeme != _END and self._lexeme[0] not in _SYMBOL_CHARS

    def _expected(self, what: str) -> InvalidSelector:
        found = f"'{printable(self._lexeme[:_FOUND_CHARS])}'" if self._lexeme else "the end"
        return self._error(f"expected {what} at position {self._at}, found {found}")

    def _refused(self, what: str, problem: str) -> InvalidSelector:
        return self._error(f"{what} {shown(self._lexeme)} at position {self._at}: {problem}")

    def _error(self, message: str) -> InvalidSelector:
        return InvalidSelector(f"{PREFIX}{_SUBJECT}{message}", position=self._at)
