"""Labels: what selectors look at."""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Self

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from solti_store.model._problems import translate
from solti_store.model.scalars import Text

__all__ = ["Labels"]

_PAIRS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[Text, Text])


class Labels(Mapping[str, str]):
    """An immutable, hashable mapping of strings, kept and written in key order.

    Any string that PostgreSQL can store is a legal key and value; Kubernetes' label syntax is not asked for.

    Raises:
        Invalid: A key or value is no string, or holds NUL or a lone surrogate.
    """

    __slots__ = ("_pairs",)

    _pairs: dict[str, str]

    def __init__(self, pairs: Mapping[str, str] = {}, /, **more: str) -> None:
        try:
            checked = _PAIRS.validate_python({**pairs, **more})
        except ValidationError as error:
            raise translate(error) from None
        self._pairs = dict(sorted(checked.items()))

    @classmethod
    def _from_checked(cls, pairs: dict[str, str]) -> Self:
        self = cls.__new__(cls)
        # Code point order is UTF-8 byte order, which is the contract's.
        self._pairs = {key: pairs[key] for key in sorted(pairs)} if len(pairs) > 1 else pairs
        return self

    def __getitem__(self, key: str) -> str:
        return self._pairs[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, key: object) -> bool:
        return key in self._pairs

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Labels):
            return self._pairs == other._pairs
        return self._pairs == other if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._pairs.items()))

    def __or__(self, other: Mapping[str, str]) -> "Labels":
        """Both sets of labels; `other` wins where they share a key."""
        return Labels({**self._pairs, **other})

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, str]]]:
        return type(self), (self._pairs,)

    def __repr__(self) -> str:
        return f"Labels({self._pairs!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        pairs = handler.generate_schema(dict[Text, Text])
        document = core_schema.no_info_after_validator_function(cls._from_checked, pairs)
        return core_schema.json_or_python_schema(
            json_schema=document,
            python_schema=core_schema.no_info_wrap_validator_function(
                lambda value, check: value if isinstance(value, Labels) else check(value), document
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(attrgetter("_pairs"), return_schema=pairs),
        )
