"""Checks the measured quality of a model that is about to be served
(`engine.weights.quality_record`)."""

from dataclasses import asdict

import structlog

from engine.contract.resolved_config import ResolvedConfig
from engine.errors import ModelLoadError
from engine.weights.quality_record import Kept, MeasuredQuality, measured_quality
from engine.weights.source import Checkpoint

MUCH_KL = 0.1
"""The divergence in nats above which a warning is logged: two or three of ten first choices differ
(docs/quantization.md)."""

log = structlog.get_logger(__name__)


def checked_quality(
    checkpoint: Checkpoint, config: ResolvedConfig, max_kl: float | None
) -> MeasuredQuality | None:
    """Return what was measured of the model in its served format, and log what an operator should
    know.

    Raises:
        ModelLoadError: the model diverges from its original by more than `max_kl`.
    """
    kept = Kept(
        quantization=config.quantization,
        dtype=config.dtype,
        kv_cache_dtype=config.kv_cache_dtype,
    )
    found = measured_quality(checkpoint, kept)
    if found is None:
        if max_kl is not None:
            log.warning(
                "max_kl is set but has no effect: nobody has measured this model in this format; "
                "tandem perplexity --against ORIGINAL --save measures it",
                **asdict(kept),
            )
        return None
    if max_kl is not None and found.kl_divergence > max_kl:
        raise ModelLoadError(
            f"the model's measured KL divergence from {found.against} is "
            f"{found.kl_divergence:.4f} nats; max_kl is {max_kl:g}: serve the model in another "
            f"format, or raise max_kl",
            param="max_kl",
        )
    if found.kl_divergence > MUCH_KL:
        log.warning(
            "the model's probabilities are far from its original's, as measured",
            **{name: value for name, value in asdict(found).items() if name != "kept"},
        )
    return found
