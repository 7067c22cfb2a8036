"""Training state on disk: everything needed to continue, replaced atomically."""

import os
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state`. If the run is killed meanwhile, the older file stays intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The saved state, or None at the first start."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


class Ema:
    """Exponential moving average of a module's parameters, warmed up over the first steps."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), parameters, 1 - decay)

    def copy_to(self, module: torch.nn.Module) -> None:
        """Put the averaged weights into `module`."""
        module.load_state_dict(self.shadow, strict=False)
