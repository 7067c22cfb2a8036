"""Makes measurements of a model's quality."""

from dataclasses import replace
from typing import Any

from engine.weights.quality_record import Kept, MeasuredQuality

KEPT = Kept(quantization="none", dtype="float32", kv_cache_dtype="float32")


def measured(kl: float, **kept: Any) -> MeasuredQuality:
    """A divergence from the original of weights that are kept in a way."""
    return MeasuredQuality(
        kept=replace(KEPT, **kept),
        kl_divergence=kl,
        kl_divergence_error=0.01,
        top1_agreement=0.75,
        perplexity=20.5,
        original_perplexity=19.5,
        tokens=1000,
        against="original",
        text="text.txt",
    )
