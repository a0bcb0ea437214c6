"""What a subprocess task runs: a command, or a script for an interpreter."""

import binascii
from base64 import b64encode
from enum import StrEnum
from typing import Annotated, Self, TypeAlias

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from solti_store.model._base import Value, is_empty, is_none
from solti_store.model._problems import TAG_MARK, BrokenRule, Rank, invalid, shown
from solti_store.model.env import TaskEnv
from solti_store.model.scalars import MAX_SCRIPT_BODY_BYTES, Flag, Text

__all__ = ["Command", "CustomRuntime", "Runtime", "Script", "SubprocessMode", "SubprocessSpec"]


class CustomRuntime(Value):
    """An interpreter that the contract has no name for.

    Attributes:
        command: The program; not blank.
        flag: The option after which the program takes a script as text; not blank.
    """

    command: Text
    flag: Text

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.command.strip():
            raise BrokenRule("custom runtime command cannot be empty", Rank.KIND, "command")
        if not self.flag.strip():
            raise BrokenRule("custom runtime flag cannot be empty", Rank.KIND, "flag")
        return self

    @property
    def argv_prefix(self) -> tuple[str, str]:
        """The program and the flag that the script text follows."""
        return self.command, self.flag


class Runtime(StrEnum):
    """An interpreter the contract names; `Runtime.custom` builds any other."""

    BASH = "bash"
    PYTHON = "python"
    NODE = "node"

    @property
    def argv_prefix(self) -> tuple[str, str]:
        """The program and the flag that the script text follows."""
        return _ARGV_PREFIXES[self]

    @staticmethod
    def custom(command: str, flag: str) -> CustomRuntime:
        """An interpreter of the caller's choice.

        Raises:
            Invalid: Program or flag is blank.
        """
        return CustomRuntime(command=command, flag=flag)


_ARGV_PREFIXES = {
    Runtime.BASH: ("bash", "-c"),
    Runtime.PYTHON: ("python3", "-c"),
    Runtime.NODE: ("node", "-e"),
}


class Command(Value):
    """A program started directly, without a shell.

    Attributes:
        command: The program; not blank.
        args: Its arguments.
    """

    command: Text
    args: tuple[Text, ...] = Field(default=(), exclude_if=is_empty)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.command.strip():
            raise BrokenRule("subprocess command cannot be empty", Rank.KIND, "command")
        return self


def _decode(body: str) -> str:
    """The text of a script body, by the contract's rules and in its order."""
    if not body:
        raise BrokenRule("script body cannot be empty", Rank.KIND)
    # The size follows from the length, so an oversized body is refused before it is decoded.
    size = len(body) * 3 // 4 - body[-2:].count("=")
    if size > MAX_SCRIPT_BODY_BYTES:
        raise BrokenRule(f"script body is {size} bytes decoded, maximum allowed is {MAX_SCRIPT_BODY_BYTES}", Rank.KIND)
    try:
        data = binascii.a2b_base64(body, strict_mode=True)
    except ValueError as error:  # binascii.Error, or text that is not ASCII
        raise BrokenRule(f"invalid base64 body: {str(error).lower()}", Rank.KIND) from None
    # binascii takes an unused bit that is set in the last symbol, and surplus padding; but one script
    # has one body. With the length right, only the last group can differ.
    if len(body) != (len(data) + 2) // 3 * 4 or not body.endswith(b64encode(data[-(len(data) % 3 or 3) :]).decode()):
        raise BrokenRule("invalid base64 body: the last symbol or the padding is not canonical", Rank.KIND)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BrokenRule(f"script body is not valid UTF-8: {error}", Rank.KIND) from None


def _check_body(body: str) -> str:
    _decode(body)
    return body


class _RuntimeDocument:
    """`"bash"` or `{"custom":{…}}` on the wire, `Runtime` or `CustomRuntime` in Python."""

    @staticmethod
    def __get_pydantic_core_schema__(source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        named = handler.generate_schema(Runtime)
        custom = handler.generate_schema(CustomRuntime)
        wrapped = core_schema.typed_dict_schema(
            {"custom": core_schema.typed_dict_field(custom)}, extra_behavior="forbid"
        )
        tags = {tag: TAG_MARK + tag for tag in ("named", "wrapped", "value")}

        def tag_of(value: object) -> str:
            if isinstance(value, CustomRuntime):
                return tags["value"]
            return tags["wrapped" if isinstance(value, dict) else "named"]

        document = core_schema.tagged_union_schema(
            {
                tags["named"]: named,
                tags["wrapped"]: core_schema.no_info_after_validator_function(lambda found: found["custom"], wrapped),
                tags["value"]: custom,
            },
            discriminator=tag_of,
        )
        return core_schema.json_or_python_schema(
            json_schema=document,
            python_schema=document,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: {"custom": value} if isinstance(value, CustomRuntime) else value,
                return_schema=core_schema.union_schema([named, wrapped]),
            ),
        )


class Script(Value):
    """A program text for an interpreter.

    Attributes:
        runtime: The interpreter.
        body: The text as base64 (standard alphabet, padded), as it stands in JSON; decoded it is UTF-8,
            not empty and at most `MAX_SCRIPT_BODY_BYTES`.
        args: Arguments after the text.
    """

    runtime: Annotated[Runtime | CustomRuntime, _RuntimeDocument]
    body: Annotated[str, Field(strict=True), AfterValidator(_check_body)]
    args: tuple[Text, ...] = Field(default=(), exclude_if=is_empty)

    @classmethod
    def of(cls, runtime: Runtime | CustomRuntime, text: str, *args: str) -> Self:
        """A script from its text.

        Raises:
            Invalid: The text is empty, too long, or holds a lone surrogate.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise invalid(f"script body must not contain a lone surrogate, got {shown(text)}", "body") from None
        return cls(runtime=runtime, body=b64encode(data).decode(), args=args)

    @property
    def text(self) -> str:
        """The decoded body."""
        return _decode(self.body)


class _ModeDocument:
    """`{"command":{…}}` or `{"script":{…}}` on the wire, `Command` or `Script` in Python."""

    @staticmethod
    def __get_pydantic_core_schema__(source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # An object with two optional keys, and not a union: a script may be megabytes, and to choose
        # among union members pydantic would first turn it into Python objects, twice.
        wire = core_schema.typed_dict_schema(
            {
                "command": core_schema.typed_dict_field(handler.generate_schema(Command)),
                "script": core_schema.typed_dict_field(handler.generate_schema(Script)),
            },
            total=False,
            extra_behavior="forbid",
        )
        document = core_schema.no_info_after_validator_function(_only_value, wire)
        return core_schema.json_or_python_schema(
            json_schema=document,
            python_schema=core_schema.no_info_wrap_validator_function(
                lambda value, check: value if isinstance(value, Command | Script) else check(value), document
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda mode: {"command" if isinstance(mode, Command) else "script": mode}, return_schema=wire
            ),
        )


def _only_value(found: dict[str, Command | Script]) -> Command | Script:
    if len(found) != 1:
        raise BrokenRule(f"subprocess mode must have one key, command or script, got {len(found)}")
    return next(iter(found.values()))


SubprocessMode: TypeAlias = Annotated[Command | Script, _ModeDocument]
"""What a subprocess runs."""


class SubprocessSpec(Value):
    """A process of the worker's operating system.

    Attributes:
        mode: The command or script.
        env: Its environment variables, beside the runner's.
        cwd: Its working directory; None means the worker's.
        fail_on_non_zero: Whether a non-zero exit code is a failure.
    """

    mode: SubprocessMode
    env: TaskEnv = Field(default=TaskEnv(), exclude_if=is_empty)
    cwd: Text | None = Field(default=None, exclude_if=is_none)
    fail_on_non_zero: Flag = True
