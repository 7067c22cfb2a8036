"""The Jinja environment of chat templates, as in transformers.

Templates come with checkpoints, so they are foreign code: they run in Jinja's immutable sandbox,
and operations that could use memory or time without limit are bounded.
"""

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_CHARS = 1 << 24
"""The most characters of a rendered conversation, and of any text that a template repeats."""

_MAX_POWER_BITS = 1 << 12


def create_environment() -> ImmutableSandboxedEnvironment:
    """Create the environment of one template; it keeps no state between renderings."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _PublicNamespace
    return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if hasattr(sequence, "__len__") and len(sequence) * times > MAX_CHARS:
                    raise SecurityError("the template repeats a text too many times")
        elif not _is_small_power(left, right):
            raise SecurityError("the template computes too large a power")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training; here it shows its
    content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _PublicNamespace(Namespace):
    """A namespace without names that begin with underscores, which could reach what the sandbox
    hides."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _is_small_power(base: Any, exponent: Any) -> bool:
    if not (isinstance(base, int) and isinstance(exponent, int)):
        return True
    return base.bit_length() * exponent <= _MAX_POWER_BITS


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"the template assigns to {name[:80]!r}; names must not begin with an underscore"
        )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Convert a value to JSON. Jinja's own filter escapes HTML, which no model was trained with."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: Any) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
