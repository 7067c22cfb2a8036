"""The options for loading an image model."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The operator's choices for a model.

    Attributes:
        dtype: the type of weights and activations.
        quantization: the format of the denoiser and of large text encoders, one of `QUANTIZATIONS`.
    """

    dtype: torch.dtype
    device: torch.device
    quantization: str = "none"
