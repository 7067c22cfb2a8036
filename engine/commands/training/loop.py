"""The steps of any training: draw, loss, gradient, update; write and save.

Step i draws from a generator that is seeded only by the order's seed and i, so that an interrupted
and resumed training has the same numbers as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.commands.training.checkpoints import TrainingCheckpoints
from engine.commands.training.losses import Losses
from engine.contract.orders import TrainingOrder
from engine.errors import InvalidParameter

Tell = Callable[[Mapping[str, Any]], None]
WARM_UP_STEPS = 50
"""The most steps of the warm-up, which is also at most a tenth of all steps."""
LEAST_RATE = 0.1
"""The share of the learning rate that is left at the end."""
MAX_GRADIENT_NORM = 1.0
_SEEDS_APART = 1_000_003


class Learner(Protocol):
    """A model with an adapter that is trained."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, always in the same order."""

    def loss(self, draws: torch.Generator) -> Tensor:
        """The loss of a batch drawn with `draws`: a scalar with a gradient."""

    def save(self, folder: Path) -> None:
        """Write the adapter in the form in which it is served."""

    def restore(self, folder: Path) -> None:
        """Load the adapter that `save` wrote."""

    def sample(self, folder: Path, step: int) -> None:
        """Write the model's present answers to the order's prompts."""


def train(learner: Learner, order: TrainingOrder, tell: Tell) -> dict[str, Any]:
    """Run all remaining steps. Returns the report.

    Args:
        tell: called with each step.

    Raises:
        InvalidParameter: the loss is not finite at this learning rate; the last checkpoint stays.
        CorruptFile: the checkpoint to resume from is damaged.
    """
    checkpoints = TrainingCheckpoints(order.output)
    parameters = learner.parameters
    optimizer = _optimizer(order, parameters)
    losses = Losses(order.output)
    first = 0
    if order.resume and (last := checkpoints.last()) is not None:
        learner.restore(last.adapter)
        optimizer.load_state_dict(last.optimizer_state())
        losses.resume(last.step)
        first = last.step
    start = time.perf_counter()
    for step in range(first, order.steps):
        rate = order.learning_rate * learning_rate_factor(step, order.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(learner, optimizer, parameters, order.seed, step)
        if not math.isfinite(loss):
            raise InvalidParameter(
                f"the loss of step {step + 1} is {loss}; lower --learning-rate, or use --precision "
                f"float32",
                param="learning_rate",
            )
        done = step + 1
        losses.add(done, loss, rate)
        seconds = time.perf_counter() - start
        left = (order.steps - done) * seconds / (done - first)
        tell({"step": done, "of": order.steps, "loss": loss, "rate": rate, "left_s": left})
        if order.sample_every and done % order.sample_every == 0:
            with _undisturbed():
                learner.sample(order.output / "samples", done)
        if order.save_every and done % order.save_every == 0 and done < order.steps:
            losses.write()
            checkpoints.write(done, learner.save, optimizer)
    losses.write()
    checkpoints.write(order.steps, learner.save, optimizer)
    learner.save(order.output / "adapter")
    return {
        "steps": order.steps,
        "seconds": time.perf_counter() - start,
        "first_loss": losses.mean_of_first(),
        "last_loss": losses.mean_of_last(),
        "adapter": str(order.output / "adapter"),
    }


def learning_rate_factor(step: int, num_steps: int) -> float:
    """A factor that rises linearly, then falls along a cosine (Loshchilov and Hutter 2017,
    arXiv:1608.03983)."""
    warm_up = min(WARM_UP_STEPS, num_steps // 10)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    done = (step - warm_up) / max(1, num_steps - warm_up)
    return LEAST_RATE + (1 - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def _step(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    seed: int,
    step: int,
) -> float:
    draws = torch.Generator().manual_seed(seed * _SEEDS_APART + step)
    # Dropout draws from the global generator.
    torch.manual_seed(seed * _SEEDS_APART + step)
    optimizer.zero_grad(set_to_none=True)
    loss = learner.loss(draws)
    value = float(loss.detach())
    if math.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
    return value


def _optimizer(order: TrainingOrder, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if order.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=order.learning_rate, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=order.learning_rate, weight_decay=0.01)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A context without gradients that restores the state of all generators."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield
