"""The choice of the implementation that runs an op.

An op is declared by its reference: a typed function whose docstring is the contract. Faster
implementations register under a name and say which arguments they support; a call that one refuses
goes to the next, and the reference never refuses. Nothing here reads the environment.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar

from kernels.refusal import refusal

P = ParamSpec("P")
R = TypeVar("R")

ORDER = ("cpu", "triton", "composed")
"""Implementation names from the first choice to the last; the reference comes after them."""


@dataclass(frozen=True, slots=True)
class Implementation(Generic[P, R]):
    """A way to compute an op."""

    name: str
    function: Callable[P, R]
    supports: Callable[P, bool]


def every_call(*args: object, **kwargs: object) -> bool:
    """The `supports` of an implementation that refuses no call."""
    return True


class Op(Generic[P, R]):
    """A callable that runs the first implementation that supports its arguments.

    `cases` is the op's module of inputs: `CASES`, `make_inputs(case, dtype, device)` and
    `TOLERANCE[dtype]`; tests and benchmarks read it. `TOLERANCE` is for inputs of that dtype and is
    added to one rounding of each output to its own type. Optional: `outputs(result, inputs)`, if
    the op writes anything but its result, `SLACK` (implementation name → dtype → additional
    tolerance, where intermediate results are rounded, too), `REFUSED` (implementation name → names
    of cases), exactly the cases it leaves to others, and `TESTED_DTYPES`, if inputs are the same
    for other dtypes.
    """

    def __init__(self, reference: Callable[P, R], cases: ModuleType) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self.cases = cases
        self._implementations: list[Implementation[P, R]] = []

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        for implementation in self._implementations:
            if implementation.supports(*args, **kwargs):
                return implementation.function(*args, **kwargs)
        return self.reference(*args, **kwargs)

    def implementation(
        self, name: str, supports: Callable[P, bool]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register the decorated function under one of the names in `ORDER`.

        `supports` takes the op's arguments and looks only at them and the hardware.
        """
        if name not in ORDER or name in self.implementations():
            raise ValueError(
                f"{self.name}: implementation {name!r} is unknown or already registered"
            )

        def register(function: Callable[P, R]) -> Callable[P, R]:
            self._implementations.append(Implementation(name, function, supports))
            self._implementations.sort(key=lambda one: ORDER.index(one.name))
            return function

        return register

    def implementations(self) -> dict[str, Implementation[P, R]]:
        """The registered implementations by name, first choice first; without the reference."""
        return {one.name: one for one in self._implementations}

    def outputs(self, result: Any, inputs: dict[str, object]) -> tuple[Any, ...]:
        """Return everything that a call wrote."""
        stated = getattr(self.cases, "outputs", None)
        return (result,) if stated is None else tuple(stated(result, inputs))

    def choice(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, dict[str, str]]:
        """Return the implementation for these arguments, and the reasons why earlier ones
        refused."""
        refused: dict[str, str] = {}
        for one in self._implementations:
            if one.supports(*args, **kwargs):
                return one.name, refused
            refused[one.name] = refusal(one.name, [*args, *kwargs.values()])
        return "reference", refused


def op(cases: ModuleType) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Declare an op by its reference."""

    def declare(reference: Callable[P, R]) -> Op[P, R]:
        return Op(reference, cases)

    return declare
