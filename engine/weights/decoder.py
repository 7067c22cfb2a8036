"""Loads a checkpoint's decoder with its weights kept as planned."""

import math
import time
from collections.abc import Iterator

import structlog
import torch

from engine.contract.host import Host
from engine.contract.status import Phase
from engine.errors import ModelLoadError
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.registry import create_model
from engine.quantization.plan import Shapes
from engine.runtime.allocator import lasting_memory
from engine.runtime.huge_pages import use_huge_pages
from engine.weights.loader import iter_weights
from engine.weights.source import Checkpoint
from engine.weights.weight_plan import HEAD, WeightPlan
from kernels import paged_attention
from kernels.paged_attention.paged_batch import WIDEST_IN_TRITON

REPORT_EVERY_S = 0.2

log = structlog.get_logger(__name__)


def load_decoder(
    checkpoint: Checkpoint,
    plan: WeightPlan,
    model_config: ModelConfig,
    host: Host,
    *,
    dtype: torch.dtype,
    device: torch.device,
    deterministic: bool,
    with_head: bool = True,
    parallel: TensorParallel = SINGLE,
) -> CausalLM:
    """Build the model and fill in its weights, reporting the progress.

    Args:
        with_head: whether to load the output layer, which a model that only computes states does
            not need. It may have a head for scores in its place, which is not loaded either.
        parallel: the rank whose share of the weights is loaded.

    Raises:
        ModelLoadError: the model cannot be loaded.
    """
    if device.type == "cuda" and deterministic:
        check_determinism(model_config.widest_head)
    model = create_model(
        model_config,
        dtype=dtype,
        device=device,
        deterministic=deterministic,
        parallel=parallel,
        linear_method=plan.method_for,
    )
    left_out = {plan.embedding} if plan.leaves_out_embedding else set()
    if not with_head:
        model.leave_out_head()
        left_out = {HEAD, "score"}
    weights = iter_weights(checkpoint, model_config, plan.packed, left_out)
    shapes = {n: s for n, s in plan.shapes.items() if n.rpartition(".")[0] not in left_out}
    with lasting_memory():
        unexpected = model.load_weights(counted(weights, shapes, host))
    if unexpected:
        log.warning("the checkpoint has tensors that the model does not use", names=unexpected)
    if device.type == "cpu":
        use_huge_pages()
    return model


def check_determinism(widest_head: int) -> None:
    """Check that attention on this GPU can be deterministic.

    Raises:
        ModelLoadError: its bits would depend on the batch.
    """
    if "triton" not in paged_attention.implementations():
        raise ModelLoadError(
            "deterministic text on a GPU needs Triton; install tandem-server[gpu] or leave "
            "deterministic off"
        )
    if widest_head > WIDEST_IN_TRITON:
        raise ModelLoadError(
            f"deterministic text on a GPU needs heads of at most {WIDEST_IN_TRITON} numbers; this "
            f"model's have {widest_head}; leave deterministic off"
        )


def counted(
    weights: Iterator[tuple[str, torch.Tensor]], shapes: Shapes, host: Host
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass the weights on and report the share of numbers that have passed."""
    total = sum(map(math.prod, shapes.values()))
    seen, reported_s = 0, 0.0
    for name, tensor in weights:
        yield name, tensor
        seen += math.prod(shapes.get(name, (0,)))
        if time.monotonic() - reported_s > REPORT_EVERY_S:
            reported_s = time.monotonic()
            host.report(Phase.LOADING, min(1.0, seen / max(1, total)))
