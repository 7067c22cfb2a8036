"""The options of a command, made from the fields of its order and from the engine's settings."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from engine.contract.orders import Order
from engine.contract.settings import EngineConfig
from server.settings.problem import option_name

Given = Mapping[str, Any]
"""The options that were given, by the name of the field or setting."""
AS_IN_SERVE = typer.Option(help="As in serve.")


def ordered(kind: type[Order], *settings: str) -> Callable[..., Callable[..., None]]:
    """Decorate a command. It takes the given fields of its order and the given settings of the
    engine, and after these its own options, which come last in its help, too.

    Args:
        settings: the names of the settings.
    """
    options = _order_options(kind)
    as_in_serve = [_as_in_serve(name) for name in settings]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, _, *own = inspect.signature(command).parameters.values()

        def run(**values: Any) -> None:
            order, engine = (
                given(**{option.name: values.pop(option.name) for option in group})
                for group in (options, as_in_serve)
            )
            command(order, engine, **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        signature = inspect.Signature([*options, *as_in_serve, *own])
        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, with tuples for lists."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value not in (None, [])
    }


def _order_options(kind: type[Order]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    options = []
    for one in fields(kind):
        if "help" in one.metadata:
            is_list = get_origin(hints[one.name]) is tuple
            # The option of a list takes one element at a time.
            names = [option_name(one.name.removesuffix("s"))] if is_list else []
            bounds = {"min": one.metadata["ge"], "max": one.metadata["le"]}
            option = typer.Option(*names, help=one.metadata["help"], **bounds)
            default = None if is_list else one.default
            annotation = list[str] | None if is_list else hints[one.name]
            options.append(_parameter(one.name, annotation, option, default))
    return options


def _as_in_serve(name: str) -> inspect.Parameter:
    is_list = get_origin(get_type_hints(EngineConfig)[name]) is tuple
    return _parameter(name, list[str] | None if is_list else str | None, AS_IN_SERVE, None)


def _parameter(name: str, annotation: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[annotation, option],
    )
