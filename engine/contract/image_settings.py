"""The settings of models that read or make images."""

from dataclasses import dataclass
from typing import Literal

from engine.contract.adapter_settings import AdapterSettings
from engine.contract.knob import knob
from engine.contract.worker_settings import DType, WorkerSettings

ImageQuantization = Literal["none", "int8-weights", "int4", "bnb-nf4", "bnb-fp4", "bnb-int8"]
"""The values of `--image-quantization`: formats made from plain weights. Formats of files need no
setting."""


@dataclass(frozen=True, kw_only=True)
class PixelSettings(WorkerSettings):
    """How an image model computes, and on how many images at once."""

    image_dtype: DType = knob(
        "auto", "Data type of image models: auto means bfloat16 on a GPU and float32 on a CPU."
    )
    max_num_rows: int = knob(
        32,
        "Maximum number of rows (images times guidance branches) in one denoiser call.",
        ge=1,
        le=1024,
    )
    max_num_images: int = knob(
        32,
        "Maximum number of images that one image model works on at once; others wait.",
        ge=1,
        le=4096,
    )


@dataclass(frozen=True, kw_only=True)
class ImageSettings(PixelSettings, AdapterSettings):
    """How a model draws."""

    image_quantization: ImageQuantization = knob(
        "none",
        "Quantize an image model's denoiser and large text encoder at load, with the formats of "
        "quantization; CLIP encoders and the autoencoder stay as they are.",
    )
    max_batch_megapixels: float = knob(
        4.2,
        "Maximum megapixels of all rows in one denoiser call; limits the memory for activations.",
        ge=0.001,
    )
