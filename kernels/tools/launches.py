"""The code that Triton would compile for a launch, recorded on a machine that may have no GPU.

Triton makes a separate kernel for integers that are 1 and for those and pointers that are divisible
by 16. Its own code decides about that here: kernels are launched as usual, for a pretended GPU, and
the JIT's hook tells what it is about to compile. Nothing is compiled or run, so tensors may be on
the `meta` device.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kernels import _triton

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
"""Options of a launch that also decide the compiled code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel as one of its launches specialises it. Can be sent to other processes.

    Arguments are named by paths, as in Triton: `(3,)` is the fourth.
    """

    module: str
    name: str
    signature: Mapping[str, str]
    """The type of each argument: `*bf16`, `i32`, `constexpr` ..."""
    constants: Mapping[tuple[int, ...], Any]
    """The value of each `constexpr`, whether it was declared or found to be 1 or None."""
    attributes: Mapping[tuple[int, ...], Any]
    """Known facts about the others: divisible by 16, or nothing."""
    options: Mapping[str, Any]

    @property
    def kernel(self) -> Any:
        """The `@triton.jit` function."""
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def key(self) -> str:
        """A key that is equal for launches that share compiled code."""
        return f"{self.module}.{self.name}{self.arguments}{dict(self.options)}"

    @property
    def arguments(self) -> dict[str, str]:
        """Return each argument's constant or type, with `/16` if it is divisible by 16."""
        names = list(self.signature)
        words = dict(self.signature)
        words |= {names[path[0]]: repr(value) for path, value in self.constants.items()}
        for path, known in self.attributes.items():
            if known:
                words[names[path[0]]] += "/16"
        return words

    def source(self) -> Any:
        """Return the source in the form that Triton's compiler takes."""
        return _triton.triton.compiler.ASTSource(
            self.kernel, dict(self.signature), dict(self.constants), dict(self.attributes)
        )


@contextlib.contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Record the launches in this context, as if on a GPU of this compute capability.

    Raises:
        RuntimeError: kernels are interpreted in this process.
    """
    triton = _triton.triton
    if not _triton.AVAILABLE or triton.knobs.runtime.interpret:
        raise RuntimeError("recording launches needs Triton with its interpreter switched off")
    launches: list[Launch] = []

    def about_to_compile(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        launches.append(
            Launch(
                module=fn.module,
                name=fn.jit_function.__name__,
                signature=compile["signature"],
                constants=compile["constants"],
                attributes=compile["configs"][0],
                options={name: compile[name] for name in OPTIONS},
            )
        )
        return True  # tells Triton that the kernel is compiled already, so nothing is run

    driver, runtime = triton.runtime.driver, triton.knobs.runtime
    before = driver._active, runtime.jit_cache_hook
    driver.set_active(_PretendedDriver(capability))
    runtime.jit_cache_hook = about_to_compile
    _triton.pretended_gpu = capability
    try:
        yield launches
    finally:
        _triton.pretended_gpu = None
        driver._active, runtime.jit_cache_hook = before


@dataclass(frozen=True, slots=True)
class _PretendedDriver:
    """The questions that the JIT asks a driver before it compiles."""

    capability: int

    def get_current_device(self) -> str:
        """Return a device that is not a number, so that it never is a real device's, whose kernels
        Triton keeps."""
        return f"pretended sm_{self.capability}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        return target(self.capability)


def target(capability: int) -> Any:
    """Return the GPU in Triton's terms."""
    return _triton.triton.backends.compiler.GPUTarget("cuda", capability, 32)
