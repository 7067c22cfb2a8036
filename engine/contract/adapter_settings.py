"""The settings of a model that can have LoRA adapters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from engine.contract.knob import GIB, knob
from engine.contract.worker_settings import WorkerSettings
from engine.errors import InvalidParameter

MAX_ADAPTER_NAME = 256
"""The most characters of an adapter's name."""


def split_adapter(entry: str) -> tuple[str, str]:
    """The name and the folder or file of `NAME=PATH`."""
    name, _, folder = entry.partition("=")
    return name.strip(), folder.strip()


def check_adapter(name: str, folder: str, *, param: str = "lora") -> None:
    """Check that name and folder can be written as `NAME=PATH`.

    Raises:
        InvalidParameter: they cannot.
    """
    is_printable = name.isprintable() and folder.isprintable() and "=" not in name
    is_stripped = name == name.strip() and folder == folder.strip()
    if not folder or not 0 < len(name) <= MAX_ADAPTER_NAME or not (is_printable and is_stripped):
        raise InvalidParameter(
            f"an adapter must be NAME=PATH in printable characters; NAME has at most "
            f"{MAX_ADAPTER_NAME} characters and no =",
            param=param,
        )


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(WorkerSettings):
    """How many LoRA adapters a model can have, and which."""

    lora: tuple[str, ...] = knob(
        (),
        "LoRA adapters, as NAME=PATH; requests use the name as their model. For text models: a "
        "folder with PEFT's adapter_config.json and adapter_model.safetensors. For image models: "
        "the same, or a .safetensors file from kohya, LyCORIS or diffusers.",
        form="NAME=PATH",
        names_files=True,
    )
    max_loras: int | None = knob(
        None,
        "Maximum number of a model's LoRA adapters that can be used in one step; requests for "
        "others wait until a slot is free. By default as many as the model has: those of lora, "
        "plus 16 if clients may load some.",
        ge=0,
        le=1024,
    )
    max_cpu_loras: int | None = knob(
        None,
        "Maximum number of a model's LoRA adapters in total, in use or not; by default max_loras, "
        "and at least those of lora.",
        ge=0,
        le=65536,
    )
    lora_memory_gib: float | None = knob(
        None,
        "Maximum memory for a model's LoRA adapters. The least recently used ones are dropped, "
        "and read again when a request needs them. By default as much as max_loras need.",
        ge=0.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, folder in self.adapters.items():
            check_adapter(name, folder)
        if len(self.adapters) < len(self.lora):
            raise InvalidParameter("two adapters of lora have the same name", param="lora")
        if len(self.lora) > self.max_adapters:
            raise InvalidParameter(
                f"lora names {len(self.lora)} adapters and max_cpu_loras is {self.max_cpu_loras}; "
                f"raise max_cpu_loras",
                param="max_cpu_loras",
            )
        if not min(1, self.max_adapters) <= self.max_adapter_slots <= self.max_adapters:
            raise InvalidParameter(
                f"max_loras is {self.max_loras}; it must be from 1 to max_cpu_loras, which is "
                f"{self.max_adapters}",
                param="max_loras",
            )

    @property
    def adapters(self) -> dict[str, str]:
        """The folders or files of the adapters, by name."""
        return dict(map(split_adapter, self.lora))

    @property
    def max_adapters(self) -> int:
        """The most adapters of a model."""
        if self.max_cpu_loras is not None:
            return self.max_cpu_loras
        return max(len(self.lora), self.max_loras or 0)

    @property
    def max_adapter_slots(self) -> int:
        """The most adapters that one step can use."""
        return self.max_adapters if self.max_loras is None else self.max_loras

    @property
    def adapter_bytes(self) -> int | None:
        """The most bytes of adapters; None is no limit."""
        return None if self.lora_memory_gib is None else int(self.lora_memory_gib * GIB)

    def with_adapters(self, adapters: Mapping[str, str]) -> Self:
        """A copy with these adapters and room for exactly them."""
        lora = tuple(f"{name}={folder}" for name, folder in adapters.items())
        most, slots = self.max_adapters, self.max_adapter_slots
        return replace(self, lora=lora, max_cpu_loras=most, max_loras=slots)
