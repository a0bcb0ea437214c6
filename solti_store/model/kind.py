"""What a task is made of: the four kinds and their parameters."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_serializer, model_validator

from solti_store.model._base import Value, is_empty, is_none
from solti_store.model._problems import TAG_MARK, BrokenRule, Rank
from solti_store.model.env import TaskEnv
from solti_store.model.scalars import Text
from solti_store.model.subprocess import Command, CustomRuntime, Runtime, Script, SubprocessSpec

__all__ = [
    "TASK_KINDS",
    "Container",
    "ContainerSpec",
    "Embedded",
    "KindName",
    "Subprocess",
    "TaskKind",
    "Wasm",
    "WasmSpec",
]

KindName: TypeAlias = Literal["embedded", "subprocess", "wasm", "container"]

TASK_KINDS: Final[tuple[KindName, ...]] = ("embedded", "subprocess", "wasm", "container")

_NO_ENV = TaskEnv()


class WasmSpec(Value):
    """A WebAssembly module.

    Attributes:
        module: Path of the module; not blank.
        args: Arguments of the module.
        env: Its environment variables, beside the runner's.
    """

    module: Text
    args: tuple[Text, ...] = Field(default=(), exclude_if=is_empty)
    env: TaskEnv = Field(default=TaskEnv(), exclude_if=is_empty)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.module.strip():
            raise BrokenRule("wasm module path cannot be empty", Rank.KIND, "module")
        return self


class ContainerSpec(Value):
    """A container.

    Attributes:
        image: The image reference; not blank.
        command: What replaces the image's entry point; None leaves it, an empty list clears it.
        args: Arguments of the command.
        env: Its environment variables, beside the runner's.
    """

    image: Text
    command: tuple[Text, ...] | None = Field(default=None, exclude_if=is_none)
    args: tuple[Text, ...] = Field(default=(), exclude_if=is_empty)
    env: TaskEnv = Field(default=TaskEnv(), exclude_if=is_empty)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.image.strip():
            raise BrokenRule("container image cannot be empty", Rank.KIND, "image")
        return self


class Embedded(Value):
    """Code inside the process that holds the task; it has no parameters, and cannot be submitted."""

    name: ClassVar[Literal["embedded"]] = "embedded"

    @model_validator(mode="before")
    @classmethod
    def _from_document(cls, value: object) -> object:
        # `{}` comes from the constructor; on the wire the discriminator has refused it already.
        if value in ("embedded", {"embedded": None}, {}):
            return {}
        if isinstance(value, dict):
            raise BrokenRule("the kind embedded has no parameters", at="embedded")
        return value

    @model_serializer
    def _to_document(self) -> Literal["embedded"]:
        return "embedded"


class Subprocess(Value, extra="forbid"):
    """A process of the worker's operating system; build one with `command` or `script`."""

    name: ClassVar[Literal["subprocess"]] = "subprocess"

    spec: SubprocessSpec = Field(validation_alias="subprocess", serialization_alias="subprocess")

    @classmethod
    def command(
        cls,
        program: str,
        /,
        *args: str,
        env: Mapping[str, str] | TaskEnv = _NO_ENV,
        cwd: str | None = None,
        fail_on_non_zero: bool = True,
    ) -> Self:
        """Run a program directly, without a shell.

        Args:
            program: The program, by path or by name; not blank.
            *args: Its arguments.
            env: Environment variables.
            cwd: Working directory; None means the worker's.
            fail_on_non_zero: Whether a non-zero exit code is a failure.

        Raises:
            Invalid: The program is blank, or a string holds NUL or a lone surrogate.
        """
        mode = Command(command=program, args=args)
        return cls(spec=SubprocessSpec(mode=mode, env=TaskEnv(env), cwd=cwd, fail_on_non_zero=fail_on_non_zero))

    @classmethod
    def script(
        cls,
        runtime: Runtime | CustomRuntime,
        text: str,
        /,
        *args: str,
        env: Mapping[str, str] | TaskEnv = _NO_ENV,
        cwd: str | None = None,
        fail_on_non_zero: bool = True,
    ) -> Self:
        """Hand a script to an interpreter.

        Args:
            runtime: The interpreter.
            text: The script itself, 1 to `MAX_SCRIPT_BODY_BYTES` bytes of UTF-8.
            *args: Arguments after the script.
            env: Environment variables.
            cwd: Working directory; None means the worker's.
            fail_on_non_zero: Whether a non-zero exit code is a failure.

        Raises:
            Invalid: The script is empty or too long, or a string holds NUL or a lone surrogate.
        """
        mode = Script.of(runtime, text, *args)
        return cls(spec=SubprocessSpec(mode=mode, env=TaskEnv(env), cwd=cwd, fail_on_non_zero=fail_on_non_zero))


class Wasm(Value, extra="forbid"):
    """A WebAssembly module; build one with `module`."""

    name: ClassVar[Literal["wasm"]] = "wasm"

    spec: WasmSpec = Field(validation_alias="wasm", serialization_alias="wasm")

    @classmethod
    def module(cls, path: str, /, *args: str, env: Mapping[str, str] | TaskEnv = _NO_ENV) -> Self:
        """Run a WebAssembly module.

        Args:
            path: Path of the module; not blank.
            *args: Its arguments.
            env: Environment variables.

        Raises:
            Invalid: The path is blank, or a string holds NUL or a lone surrogate.
        """
        return cls(spec=WasmSpec(module=path, args=args, env=TaskEnv(env)))


class Container(Value, extra="forbid"):
    """A container; build one with `image`."""

    name: ClassVar[Literal["container"]] = "container"

    spec: ContainerSpec = Field(validation_alias="container", serialization_alias="container")

    @classmethod
    def image(
        cls,
        reference: str,
        /,
        *args: str,
        command: tuple[str, ...] | None = None,
        env: Mapping[str, str] | TaskEnv = _NO_ENV,
    ) -> Self:
        """Run a container.

        Args:
            reference: The image; not blank.
            *args: Arguments of the command.
            command: What replaces the image's entry point; None leaves it, `()` clears it.
            env: Environment variables.

        Raises:
            Invalid: The reference is blank, or a string holds NUL or a lone surrogate.
        """
        return cls(spec=ContainerSpec(image=reference, command=command, args=args, env=TaskEnv(env)))


_TAGS = {name: TAG_MARK + name for name in TASK_KINDS}


def _tag_of(value: object) -> str | None:
    """Which kind a document or a value is; None for anything but one known key."""
    if isinstance(value, dict):
        return _TAGS.get(next(iter(value))) if len(value) == 1 else None
    if isinstance(value, Embedded | Subprocess | Wasm | Container):
        return _TAGS[value.name]
    return _TAGS["embedded"] if value == "embedded" else None


TaskKind: TypeAlias = Annotated[
    Annotated[Embedded, Tag(_TAGS["embedded"])]
    | Annotated[Subprocess, Tag(_TAGS["subprocess"])]
    | Annotated[Wasm, Tag(_TAGS["wasm"])]
    | Annotated[Container, Tag(_TAGS["container"])],
    Discriminator(
        _tag_of,
        custom_error_type="unknown_kind",
        custom_error_message='Must be "embedded" or an object with one key of subprocess, wasm, container',
    ),
]
"""What a task runs: `Embedded`, `Subprocess`, `Wasm` or `Container`."""
