"""Makes adapters with PEFT, and a host that grants memory for them."""

import warnings
from itertools import count
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from engine.contract.host import Grant
from engine.errors import InsufficientMemory
from engine.lora.loaded_adapters import AdapterLimits
from engine.lora.text_adapters import TextAdapters

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Host:
    """Grants memory up to a limit."""

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.reserved: list[tuple[str, str, int]] = []
        self.lent: dict[int, int] = {}
        """The bytes that were not given back, by grant."""
        self._ids = count()

    def report(self, *_: Any) -> None:
        pass

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        if num_bytes > self.capacity:
            raise InsufficientMemory("there is none left")
        self.reserved.append((device, purpose, num_bytes))
        return capacity_bytes

    def borrow(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> Grant:
        if num_bytes > self.capacity - sum(self.lent.values()):
            raise InsufficientMemory("there is none left")
        self.lent[next(self._ids)] = num_bytes
        return Grant(max(self.lent), 0)

    def give_back(self, grant: Grant) -> None:
        del self.lent[grant.id]


def limits_of(num_adapters: int, **given: Any) -> AdapterLimits:
    """Make limits for this many adapters, all in place unless told otherwise."""
    most = {"max_adapters": num_adapters, "max_slots": num_adapters, "capacity_bytes": 1}
    return AdapterLimits(**(most | given))


def load(
    model: Any,
    folders: dict[str, Any],
    host: Host | None = None,
    room: int = 0,
    *,
    is_packed: bool = False,
    **limits: Any,
) -> Any:
    """Load a table with these adapters and room for more."""
    most = limits_of(len(folders) + room, **limits)
    table = TextAdapters(model, host or Host(), most, is_packed=is_packed)
    table.load_first({name: str(folder) for name, folder in folders.items()})
    return table


def write_adapter(base: Any, folder: Path, seed: int = 0, **options: Any) -> Any:
    """Save an adapter with random numbers.

    Args:
        base: a model of transformers, or the folder of one.

    Returns:
        PEFT's model with it.
    """
    if isinstance(base, Path):
        base = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR} | options
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that is about to go, and warns of tied embeddings.
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:  # they begin as the base's
                    parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
                elif "lora_magnitude" in name:  # they begin as those of the updated weights
                    parameter *= 0.7 + 0.6 * torch.rand_like(parameter)
        model.save_pretrained(str(folder))
    return model.eval()
