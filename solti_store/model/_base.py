"""The base of every structured value: frozen, by-value, exact JSON, and no error but `ModelError`."""

import re
from collections.abc import Mapping
from functools import partial
from operator import is_, not_
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from solti_store.model._problems import translate

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    # The same class, reached without naming a private module.
    ModelMetaclass = type(BaseModel)

__all__ = ["Value", "is_empty", "is_none", "python_default"]

T = TypeVar("T")

# The contract's writer has no plus in an exponent (1e16), pydantic has one. Inside a string the quotes would be
# escaped, so this finds the field and nothing else.
_EXPONENT = re.compile(r'("factor":[0-9.]+e)\+')

# Predicates for `Field(exclude_if=…)`. Built from C callables: a lambda costs three times as much, and a
# dump asks about ten of them.
is_none = partial(is_, None)
is_empty = not_


class _PythonDefault:
    """Marks a field that JSON requires and the Python constructor fills in."""

    def __init__(self, value: object) -> None:
        self.value = value


def python_default(value: T) -> T:
    """A field default that holds in Python only: a document without the field is refused.

    To pydantic such a field is required; the constructor's metaclass supplies the value. The declared
    return type makes type checkers see an ordinary default.
    """
    field = Field()
    field.metadata.append(_PythonDefault(value))
    return field  # type: ignore[no-any-return]


# pydantic's metaclass carries this decorator, but type checkers do not look for it above a derived one.
# Frozen by default, since they do not read `model_config` either.
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class _ValueMeta(ModelMetaclass):
    """Guards construction: fills Python-only defaults, refuses unknown names, translates errors.

    `__call__` and not `__init__`: pydantic calls an overridden `__init__` for every nested value of a
    document, which would cost a Python frame each and translate the inner errors without their path.
    """

    if not TYPE_CHECKING:  # a declared __call__ would hide the constructor's signature

        def __call__(cls, *args, **values):  # noqa: ANN002, ANN003, ANN204, N805 - ruff does not see a metaclass
            if unknown := values.keys() - cls.model_fields.keys():
                # pydantic ignores unknown names, as it must for documents; in a call it is a typo.
                raise TypeError(f"{cls.__name__}() has no field {min(unknown)!r}")
            cls._check_arguments(values)
            try:
                return super().__call__(*args, **(cls._python_defaults | values))
            except ValidationError as error:
                raise translate(error, wire_names=cls._wire_names) from None


class Value(BaseModel, metaclass=_ValueMeta):
    """An immutable value: equal by content, hashable, picklable, with exact JSON.

    Whatever builds one (the constructor, `from_json`, `from_dict`, pydantic's own `model_validate*`)
    raises `ModelError` for anything wrong with it, never pydantic's `ValidationError`.
    Field names are snake_case in Python and camelCase in JSON.
    """

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )

    _python_defaults: ClassVar[dict[str, Any]] = {}
    _wire_names: ClassVar[dict[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """Collect the defaults that only the Python constructor has, and the wire names for errors."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._wire_names = {name: field.serialization_alias or name for name, field in cls.model_fields.items()}
        cls._python_defaults = {
            name: mark.value
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, _PythonDefault)
        }

    @classmethod
    def _check_arguments(cls, values: Mapping[str, Any]) -> None:
        """Refuse combinations that a document may hold but a call should not."""

    @classmethod
    def from_json(cls, data: str | bytes | bytearray) -> Self:
        """Parse a JSON document; unknown keys are ignored.

        Raises:
            ModelError: The text is no JSON, or not of this type; `field` is the dotted path.
        """
        try:
            return cls.__pydantic_validator__.validate_json(data, by_alias=True, by_name=False)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise translate(error, data) from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a decoded JSON document (wire names), under the rules of `from_json`.

        Raises:
            ModelError: The document is not of this type; `field` is the dotted path.
        """
        try:
            return cls.__pydantic_validator__.validate_python(data, by_alias=True, by_name=False)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise translate(error) from None

    def to_json(self) -> str:
        """The compact JSON document, in the contract's field order."""
        text: str = self.__pydantic_serializer__.to_json(self, by_alias=True).decode()
        return _EXPONENT.sub(r"\1", text) if "e+" in text else text

    def to_dict(self) -> dict[str, Any]:
        """The JSON document as plain dicts, lists, strings and numbers."""
        return self.__pydantic_serializer__.to_python(self, mode="json", by_alias=True)  # type: ignore[no-any-return]

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed, validated like any other value.

        Raises:
            ModelError: The changed value breaks a rule.
            TypeError: There is no field of that name.
        """
        return type(self)(**{**dict(BaseModel.__iter__(self)), **changes})

    # pydantic's own names keep working, under the same contract.

    def model_dump_json(self, **options: Any) -> str:  # noqa: ANN401 - pydantic's options
        """As `BaseModel.model_dump_json`, with numbers as the contract writes them."""
        return _EXPONENT.sub(r"\1", super().model_dump_json(**options))

    @classmethod
    def model_validate(cls, obj: object, **options: Any) -> Self:  # noqa: ANN401 - pydantic's options
        """As `BaseModel.model_validate`: accepts instances, and field names as well as wire names.

        Raises:
            ModelError: The object is not of this type.
        """
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise translate(error) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:  # noqa: ANN401
        """As `BaseModel.model_validate_json`, but only wire names unless `by_name=True` is given.

        Raises:
            ModelError: The text is no JSON, or not of this type.
        """
        if options.get("by_name") is None:
            options |= {"by_name": False, "by_alias": True}
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            raise translate(error, json_data) from None

    @classmethod
    def model_validate_strings(cls, obj: Any, **options: Any) -> Self:  # noqa: ANN401
        """As `BaseModel.model_validate_strings`.

        Raises:
            ModelError: The object is not of this type.
        """
        try:
            return super().model_validate_strings(obj, **options)
        except ValidationError as error:
            raise translate(error) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As `BaseModel.model_copy`, but `update` is validated: pydantic's own would store anything.

        Raises:
            ModelError: The changed value breaks a rule.
        """
        return self.replace(**update) if update else super().model_copy(deep=deep)

    if not TYPE_CHECKING:  # type checkers know from `frozen` that fields cannot be set

        def __setattr__(self, name: str, value: object) -> NoReturn:
            raise AttributeError(f"{type(self).__name__} is immutable; use replace({name}=…)")

        def __delattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"{type(self).__name__} is immutable; {name} cannot be deleted")
