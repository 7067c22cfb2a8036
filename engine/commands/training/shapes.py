"""Builds known models from their configurations alone, to estimate the memory of training them for
`tandem lora-train --estimate NAME`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.commands.training.image_learner import TARGETS
from engine.commands.training.memory import MemoryEstimate, estimate
from engine.contract.orders import TrainingOrder
from engine.errors import InvalidParameter

_UNETS = Path(__file__).parents[2] / "data" / "single_file"
_LLAMA_3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_PROMPT = 77
"""The number of CLIP's tokens, and of the states that a UNet sees."""
_T5_PROMPT = 512


@dataclass(frozen=True, slots=True)
class Shape:
    """The trained part of a model: a denoiser, or a whole language model.

    Attributes:
        build: makes the model without an adapter.
        loss: runs a forward pass of a batch.
        targets: the layers that get an update if the order names none.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[Any, TrainingOrder], Tensor]
    targets: str | Sequence[str]


def estimate_shape(name: str, order: TrainingOrder) -> MemoryEstimate:
    """Estimate the training of one of `SHAPES`. An image model's text encoder and autoencoder are
    left out, as they run once before.

    Raises:
        InvalidParameter: there is no such shape.
    """
    if name not in SHAPES:
        raise InvalidParameter(f"there is no shape {name!r}; give one of {', '.join(SHAPES)}")
    return estimate_training(SHAPES[name](), order)


def estimate_training(shape: Shape, order: TrainingOrder) -> MemoryEstimate:
    """Estimate the training of a model of any shape."""
    import peft

    from engine.commands.training.adapter import peft_config, targets_found

    def build() -> nn.Module:
        with _default_dtype(getattr(torch, order.precision)):
            model = shape.build().requires_grad_(False)
        with targets_found():
            peft.inject_adapter_in_model(peft_config(order, shape.targets), model)
        return model.train()

    return estimate(build, lambda model: shape.loss(model, order), order.optimizer)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A context for the type of new tensors; on the meta device they cannot be cast afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def text_shape(config: Any) -> Shape:
    """The shape of a transformers configuration."""

    def build() -> nn.Module:
        import transformers

        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
        return model

    return Shape(build, _text_loss, "all-linear")


def unet_shape(config: Mapping[str, Any]) -> Shape:
    """The shape of a configuration of diffusers' `UNet2DConditionModel`."""

    def build() -> nn.Module:
        from diffusers import UNet2DConditionModel

        model: nn.Module = UNet2DConditionModel.from_config(dict(config))
        return model

    return Shape(build, _unet_loss, TARGETS)


def _llama() -> Shape:
    import transformers

    return text_shape(transformers.LlamaConfig(**_LLAMA_3_8B))


def _unet(family: str) -> Shape:
    config = (_UNETS / family / "unet" / "config.json").read_text(encoding="utf-8")
    return unet_shape(json.loads(config))


def _flux() -> Shape:
    def build() -> nn.Module:
        from diffusers import FluxTransformer2DModel

        model: nn.Module = FluxTransformer2DModel()
        return model

    return Shape(build, _flux_loss, ("to_q", "to_k", "to_v", "to_out.0"))


SHAPES: Mapping[str, Callable[[], Shape]] = {
    "llama-3-8b": _llama,
    "sd-1.5": lambda: _unet("sd1"),
    "sdxl": lambda: _unet("sdxl"),
    "flux": _flux,
}


def _text_loss(model: Any, order: TrainingOrder) -> Tensor:
    token_ids = torch.zeros(order.batch_size, order.max_length, dtype=torch.long)
    loss: Tensor = model(input_ids=token_ids, labels=token_ids, use_cache=False).loss
    return loss


def _unet_loss(model: Any, order: TrainingOrder) -> Tensor:
    batch, side, config = order.batch_size, order.size // 8, model.config
    dtype = getattr(torch, order.precision)
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.zeros(batch, pooled, dtype=dtype),
            "time_ids": torch.zeros(batch, 6, dtype=dtype),
        }
    found = model(
        torch.zeros(batch, config.in_channels, side, side, dtype=dtype),
        torch.zeros(batch, dtype=torch.long),
        torch.zeros(batch, _PROMPT, config.cross_attention_dim, dtype=dtype),
        added_cond_kwargs=added,
    ).sample
    loss: Tensor = found.float().square().mean()
    return loss


def _flux_loss(model: Any, order: TrainingOrder) -> Tensor:
    batch, config = order.batch_size, model.config
    dtype = getattr(torch, order.precision)
    patches = (order.size // 16) ** 2
    found = model(
        hidden_states=torch.zeros(batch, patches, config.in_channels, dtype=dtype),
        encoder_hidden_states=torch.zeros(
            batch, _T5_PROMPT, config.joint_attention_dim, dtype=dtype
        ),
        pooled_projections=torch.zeros(batch, config.pooled_projection_dim, dtype=dtype),
        timestep=torch.zeros(batch, dtype=dtype),
        img_ids=torch.zeros(patches, 3, dtype=dtype),
        txt_ids=torch.zeros(_T5_PROMPT, 3, dtype=dtype),
    ).sample
    loss: Tensor = found.float().square().mean()
    return loss
