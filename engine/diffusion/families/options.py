"""How an image model is loaded."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What the operator decides about a model.

    Attributes:
        dtype: of weights and activations.
        quantization: of the denoiser and of T5 encoders, one of `QUANTIZATIONS`.
    """

    dtype: torch.dtype
    device: torch.device
    quantization: str = "none"
