"""One training run: rates, updates, averages, and the state that a later start resumes."""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from tools.demo_image_model.checkpoint import Ema, load_state, save_state

M = TypeVar("M", bound=torch.nn.Module)


def rate_factor(step: int, args: argparse.Namespace) -> float:
    """The factor of the learning rate: warm up, stay, fall linearly to a fiftieth."""
    if step < args.warm_up:
        return float((step + 1) / args.warm_up)
    left = float((args.steps - step) / max(1, args.decay))
    return min(1.0, max(0.02, left))


class TrainingRun(Generic[M]):
    """A module in training, with its optimiser and averaged weights.

    Attributes:
        step: the number of updates so far, including those before a resumption.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        module: M,
        rates: Sequence[tuple[torch.nn.Module, float]],
        *,
        ema_decay: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        save_every: int = 200,
        factor_at: Callable[[int, argparse.Namespace], float] = rate_factor,
    ) -> None:
        """Resume the run in the folder `args.run`, if it holds one.

        Args:
            args: the options that `add_arguments` defines.
            rates: the parts that change and their learning rates, before `args.rate`.
            factor_at: the factor of the learning rates at a step.
        """
        self.step = 0
        self._args, self._module, self._save_every = args, module, save_every
        self._factor_at = factor_at
        self._path: Path = args.run / "state.pt"
        groups = [{"params": part.parameters(), "base": rate * args.rate} for part, rate in rates]
        self._optimiser = torch.optim.AdamW(
            groups, betas=betas, weight_decay=weight_decay, foreach=True
        )
        self._ema = Ema(module, ema_decay)
        state = load_state(self._path)
        if state is not None:
            module.load_state_dict(state["module"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._ema.shadow, self._ema.num_updates = state["ema"], state["num_updates"]
            self.step = state["step"]

    def train(self, loss_at: Callable[[int], torch.Tensor], save: Callable[[M], None]) -> None:
        """Update the module up to `--steps`.

        Args:
            loss_at: the loss of a step.
            save: writes the result, a copy of the module with averaged weights.
        """
        started_s, first, running = time.monotonic(), self.step, 0.0
        while self.step < self._args.steps:
            for group in self._optimiser.param_groups:
                group["lr"] = group["base"] * self._factor_at(self.step, self._args)
            loss: Any = loss_at(self.step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
            self._optimiser.step()
            self._optimiser.zero_grad()
            self._ema.update(self._module)
            self.step += 1
            running += (loss.item() - running) / min(self.step - first, self._save_every)
            if self.step % self._save_every == 0 or self.step == self._args.steps:
                speed = (self.step - first) / (time.monotonic() - started_s)
                print(f"step {self.step} loss {running:.4f} {speed:.2f} steps/s", flush=True)
                self._save_state()
                averaged = copy.deepcopy(self._module)
                self._ema.copy_to(averaged)
                save(averaged)

    def _save_state(self) -> None:
        save_state(
            self._path,
            {
                "module": self._module.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "ema": self._ema.shadow,
                "num_updates": self._ema.num_updates,
                "step": self.step,
            },
        )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options of the trainers of UNets."""
    parser.add_argument(
        "--size", type=int, nargs="+", default=[64], help="sizes of the pictures in pixels"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=64,
        help="pictures of 64 pixels in a batch; larger ones are fewer",
    )


def add_arguments(
    parser: argparse.ArgumentParser, *, steps: int, warm_up: int, decay: int, pool: int
) -> None:
    """Add the options that all trainers share, with the defaults of this one."""
    parser.add_argument("--run", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--steps", type=int, default=steps, help="total number of updates")
    parser.add_argument(
        "--warm-up", type=int, default=warm_up, help="first steps, at a rising rate"
    )
    parser.add_argument("--decay", type=int, default=decay, help="last steps, at a falling rate")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--pool", type=int, default=pool, help="encoded scenes kept in memory")
    parser.add_argument("--threads", type=int, default=2)
