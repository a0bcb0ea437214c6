"""Structured label selectors."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self, TypeAlias

from pydantic import Field, model_validator

from solti_store.model._base import Value, is_empty
from solti_store.model._problems import BrokenRule, Rank
from solti_store.model.labels import Labels
from solti_store.model.scalars import Text

__all__ = ["LabelSelector", "RunnerSelector", "SelectorOperator", "SelectorRequirement"]


class SelectorOperator(StrEnum):
    """How a requirement looks at a label."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class SelectorRequirement(Value):
    """One condition on one label.

    Attributes:
        key: The label's key, not empty.
        operator: `In`, `NotIn`, `Exists` or `DoesNotExist`.
        values: What `In` and `NotIn` compare with (at least one); empty for the others.
    """

    key: Text
    operator: SelectorOperator
    values: tuple[Text, ...] = Field(default=(), exclude_if=is_empty)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.key:
            raise BrokenRule("selector requirement key must not be empty", Rank.SELECTOR, "key")
        takes_values = self.operator in {SelectorOperator.IN, SelectorOperator.NOT_IN}
        if takes_values != bool(self.values):
            need = "non-empty" if takes_values else "empty"
            raise BrokenRule(
                f"selector requirement with operator {self.operator} must have {need} values",
                Rank.SELECTOR,
                "values",
            )
        return self

    @classmethod
    def in_(cls, key: str, *values: str) -> Self:
        """The label is there and has one of these values."""
        return cls(key=key, operator=SelectorOperator.IN, values=values)

    @classmethod
    def not_in(cls, key: str, *values: str) -> Self:
        """The label is missing, or has none of these values."""
        return cls(key=key, operator=SelectorOperator.NOT_IN, values=values)

    @classmethod
    def exists(cls, key: str) -> Self:
        """The label is there."""
        return cls(key=key, operator=SelectorOperator.EXISTS)

    @classmethod
    def does_not_exist(cls, key: str) -> Self:
        """The label is missing."""
        return cls(key=key, operator=SelectorOperator.DOES_NOT_EXIST)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels meets the condition."""
        match self.operator:
            case SelectorOperator.IN:
                return self.key in labels and labels[self.key] in self.values
            case SelectorOperator.NOT_IN:
                return self.key not in labels or labels[self.key] not in self.values
            case SelectorOperator.EXISTS:
                return self.key in labels
            case SelectorOperator.DOES_NOT_EXIST:
                return self.key not in labels


class RunnerSelector(Value):
    """Conditions on labels that must all hold; with none of them it matches everything.

    Attributes:
        match_labels: Labels that must be there with exactly these values.
        match_expressions: Further conditions.
    """

    match_labels: Labels = Field(default=Labels(), exclude_if=is_empty)
    match_expressions: tuple[SelectorRequirement, ...] = Field(default=(), exclude_if=is_empty)

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition at all."""
        return not self.match_labels and not self.match_expressions

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a set of labels meets every condition."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )


LabelSelector: TypeAlias = RunnerSelector
"""The same structure, where it selects tasks and not workers."""
