"""Functions that a model may call, in requests and in answers."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from engine.errors import InvalidParameter
from server.protocol.common import WireModel
from server.protocol.structure_fields import num_json_bytes
from server.protocol.variants import read_model

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 512 << 10
MAX_SCHEMA_DEPTH = 64
_MAX_DESCRIPTION_CHARS = 64 << 10
_NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"
_MODES = ("none", "auto", "required")


class FunctionDefinition(WireModel):
    """The description of a function for the model. Fields that are not listed are passed to the
    template."""

    name: str = Field(pattern=_NAME_PATTERN, max_length=64)
    description: str | None = Field(None, max_length=_MAX_DESCRIPTION_CHARS)
    parameters: dict[str, Any] | None = Field(
        None, max_length=1024, description="JSON schema of the arguments, which are an object."
    )
    strict: bool | None = Field(
        None, description="Make the arguments follow the schema exactly. Default false."
    )


class FunctionTool(WireModel):
    """A function that may be called."""

    type: Literal["function"]
    function: FunctionDefinition
    _place: int | None = None

    @property
    def field(self) -> str:
        """The field of its function in the body."""
        return f"tools[{self._place}].function"


@dataclass(frozen=True, slots=True)
class NamedToolChoice:
    """The name of the function that must be called."""

    name: str


@dataclass(frozen=True, slots=True)
class AllowedTools:
    """The functions that may be called (`auto`), or of which one must be called (`required`)."""

    mode: str
    names: Sequence[str]


def _read_tool_choice(value: Any) -> str | NamedToolChoice | AllowedTools | None:
    match value:
        case None | "none" | "auto" | "required":
            return value
        case {"type": "function"} if (name := _named(value)) is not None:
            return NamedToolChoice(name)
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)},
        } if 0 < len(tools) <= MAX_TOOLS:
            names = [name for tool in tools if (name := _named(tool)) is not None]
            if len(names) == len(tools):
                return AllowedTools(mode, names)
    raise PydanticCustomError(
        "tool_choice",
        'must be "none", "auto", "required", {function} or {allowed}',
        {
            "function": '{"type": "function", "function": {"name": "…"}}',
            "allowed": '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", '
            '"tools": [functions]}}',
        },
    )


def _named(tool: Any) -> str | None:
    """The name of the function that a reference to a tool means."""
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    return None


_NAMED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": _NAME_PATTERN}},
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
    "maxProperties": 16,
}
_ALLOWED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "allowed_tools"},
        "allowed_tools": {
            "type": "object",
            "properties": {
                "mode": {"enum": ["auto", "required"]},
                "tools": {
                    "type": "array",
                    "items": _NAMED_SCHEMA,
                    "minItems": 1,
                    "maxItems": MAX_TOOLS,
                },
            },
            "required": ["mode", "tools"],
            "maxProperties": 16,
        },
    },
    "required": ["type", "allowed_tools"],
    "maxProperties": 16,
}

ToolChoice = Annotated[
    str | NamedToolChoice | AllowedTools | None,
    PlainValidator(_read_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(_MODES), "maxLength": 8},
                _NAMED_SCHEMA,
                _ALLOWED_SCHEMA,
                {"type": "null"},
            ]
        }
    ),
]


class ToolOptions(WireModel):
    """The functions that a prompt shows; shared with `/tokenize`."""

    tools: list[FunctionTool] | None = Field(
        None,
        max_length=MAX_TOOLS,
        description="Functions that the model may call, each with a different name.",
    )

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        seen: set[str] = set()
        num_bytes = 0
        for index, tool in enumerate(self.tools or ()):
            if tool._place is None:
                tool._place = index
            function, param = tool.function, tool.field
            if function.name in seen:
                raise InvalidParameter(
                    f"two tools are named {function.name}; give each its own name",
                    param=f"{param}.name",
                )
            seen.add(function.name)
            if (function.parameters or {}).get("type", "object") != "object":
                raise InvalidParameter(
                    "arguments are always an object; set type object in parameters",
                    param=f"{param}.parameters.type",
                )
            fields = dict(function)
            num_bytes += num_json_bytes(fields)
            if num_bytes > MAX_TOOLS_BYTES:
                raise InvalidParameter(
                    f"tools have at least {num_bytes} bytes of JSON; the limit is "
                    f"{MAX_TOOLS_BYTES}; send fewer or shorten their schemas",
                    param="tools",
                )
            if _is_deeper(fields, MAX_SCHEMA_DEPTH):
                raise InvalidParameter(
                    f"{param} is nested more than {MAX_SCHEMA_DEPTH} levels deep; flatten it",
                    param=f"{param}.parameters",
                )
        return self


class ToolUse(ToolOptions):
    """The functions that a model may call, and whether it must call one."""

    tool_choice: ToolChoice = Field(
        None,
        description="Whether the model may call tools (auto, the default with tools), must "
        "(required, or a named function) or may not (none), or which ones it may "
        "call (allowed_tools). Values other than none and auto need tools.",
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Allow more than one call in an answer. Default true."
    )

    @property
    def must_call(self) -> bool:
        """Whether the answer must contain a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedToolChoice)

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        match self.tool_choice:
            case NamedToolChoice(name):
                self._check_known([name])
            case AllowedTools(mode, names):
                self._check_known(names)
                # The other tools are treated as if they had not been sent.
                self.tools = [tool for tool in self.tools or () if tool.function.name in names]
                self.tool_choice = mode
            case "required" if not self.tools:
                raise InvalidParameter(
                    "tool_choice is required, but there are no tools; send some",
                    param="tool_choice",
                )
        return self

    def _check_known(self, chosen: Sequence[str]) -> None:
        """Check that the chosen functions are among the tools.

        Raises:
            InvalidParameter: no tool has one of these names.
        """
        names = [tool.function.name for tool in self.tools or ()]
        for name in chosen:
            if name not in names:
                offered = ", ".join(names[:16]) if names else "none"
                raise InvalidParameter(
                    f"tool_choice names the function {name[:64]!r}, which is not among the tools: "
                    f"{offered}",
                    param="tool_choice",
                )


def is_of_type(tool: Mapping[str, Any], own: str) -> bool:
    """Whether the client runs the tool. Tools of other types run on a vendor's servers; clients
    offer them to any server, so they are left out.

    Args:
        own: the type of the client's own tools, and of tools without a type.
    """
    return tool.get("type") in (own, None)


def left_out_tools(tools: Sequence[Mapping[str, Any]] | None, own: str) -> list[str]:
    """The types of the tools that are left out, as names of ignored fields."""
    types = [f"tools.{tool.get('type')}" for tool in tools or () if not is_of_type(tool, own)]
    return list(dict.fromkeys(types))


def own_tools(
    tools: Sequence[Mapping[str, Any]] | None,
    own: str,
    function_of: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[FunctionTool] | None:
    """The client's own tools; errors name each by its place among all that the client sent.

    Args:
        function_of: makes the `function` of a tool.

    Raises:
        InvalidParameter: one of them is not a function.
    """
    kept = []
    for place, tool in enumerate(tools or ()):
        if is_of_type(tool, own):
            value = {"type": "function", "function": function_of(tool)}
            kept.append(read_model(FunctionTool, value, ("tools", place)))
            kept[-1]._place = place
    return kept or None


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether a value's containers are nested deeper than the limit. Needs no recursion."""
    level: Iterable[Any] = [value]
    for _ in range(limit):
        level = [item for container in level for item in _containers(container)]
        if not level:
            return False
    return True


def _containers(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict | list)]


@dataclass(slots=True)
class CalledFunction:
    """The function, and its arguments as JSON text that the model wrote."""

    name: str
    arguments: str


@dataclass(slots=True)
class AnswerToolCall:
    """A call in a whole answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    """The function's name in a call's first chunk, and more of its arguments in any chunk."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """The part that a chunk adds to a call; id and type are in the first chunk."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


def read_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a call as an object; None if their text was cut off."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None
