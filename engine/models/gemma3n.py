"""Gemma 3n's text models: several streams of hidden states, of which a layer computes one.

Like Gemma 4's small models, they have inputs for each layer, and their last layers read the keys
and values of earlier ones. A layer also predicts all streams before it runs, and corrects them by
its result (AltUp); a product of low rank runs beside attention (Laurel); the first MLPs let only
their largest gates pass. Papers: AltUp, Baykal et al. 2023, arXiv:2301.13310; LAuReL, Menghani et
al. 2024, arXiv:2411.07501; sparse gates, You et al. 2025, arXiv:2506.06644. Source: transformers'
`modeling_gemma3n.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.decoder import Decoder
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gemma4 import (
    GGUF_TENSORS,
    INPUT_SIZE,
    Gemma4Config,
    LayerWithInput,
    ModelWithInputs,
    gguf_input_vocab,
    gguf_layer_types,
    gguf_ropes,
    input_fields,
    kv_sources,
    norm_of,
    rope_fields,
)
from engine.models.gguf_keys import GgufKeys, as_json
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.experts import Fp32Linear
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import LearnedVector
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from kernels import sigmoid_mul

ARCHITECTURE = "Gemma3nForCausalLM"
HEAD_DIM, WINDOW, PERIOD, SHARED_LAYERS = 256, 512, 5, 15
"""The values of missing keys; one layer in `PERIOD` sees the whole context."""
SPARSE_LAYERS, SPARSITY = 10, 0.95
"""The first layers let this share of their gates pass nothing, in models with more layers."""
ROPES = {FULL: {"rope_theta": 1e6}, SLIDING: {"rope_theta": 1e4}}
LEAST_SQUARE = 1e-5
"""The least mean square of a stream that is brought to another's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3nConfig(Gemma4Config):
    """Gemma 3n's configuration."""

    num_streams: int
    active_stream: int
    """The stream that layers compute."""
    scales_corrected: bool
    """Whether the corrected active stream is scaled before it gates the layer's input."""
    laurel_rank: int
    sparsities: tuple[float, ...]
    """The share of each layer's gates that pass nothing."""

    @property
    def numbers_beside_layers(self) -> int:
        """See `ModelConfig`: the inputs for each layer; all streams, and twice in fp32."""
        streams = 5 * self.num_streams * self.hidden_size
        return self.num_hidden_layers * self.layer_input_size + streams


class AltUp(nn.Module):
    """Predicts the streams before a layer, and corrects them after it, in fp32."""

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__()
        number = config.num_streams
        self._number, self._active = number, config.active_stream
        self._router_scale = 1 / config.hidden_size
        self.correct_output_scale = LearnedVector(config.hidden_size)
        self.correction_coefs = Fp32Linear(number, (Shard("correction_coefs", number),))
        self.prediction_coefs = Fp32Linear(number, (Shard("prediction_coefs", number**2),))
        self.modality_router = Fp32Linear(config.hidden_size, (Shard("modality_router", number),))
        self.router_norm = norm_of(config)

    def predict(self, streams: Tensor, ctx: ForwardContext) -> list[Tensor]:
        """Map [N, T, C] to N tensors [T, C] fp32, each a stream plus a mixture of all."""
        modalities = self._modalities(streams[self._active], ctx)
        coefs = self.prediction_coefs.in_fp32(modalities).view(-1, self._number, self._number)
        before = [streams[i].float() for i in range(self._number)]
        return [
            # Products are rounded before they are added, so the bits do not depend on the place.
            sum((before[j] * coefs[:, i, j, None] for j in range(self._number)), before[i])
            for i in range(self._number)
        ]

    def correct(self, predicted: list[Tensor], computed: Tensor, ctx: ForwardContext) -> None:
        """Add a share of what the layer computed, [T, C], beyond its prediction to each of the
        predictions, which are mutated."""
        coefs = self.correction_coefs.in_fp32(self._modalities(computed, ctx)).add_(1.0)
        news = computed.float() - predicted[self._active]
        for i, stream in enumerate(predicted):
            stream.add_(news * coefs[:, i, None])

    def _modalities(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Compute [T, N] in the dtype of [T, C]."""
        routed = self.modality_router.in_fp32(self.router_norm(x, ctx)).mul_(2 * self._router_scale)
        # tanh(y) = 2·sigmoid(2·y) - 1. PyTorch's bits depend on the place in a vector.
        turned = sigmoid_mul(torch.cat((routed, torch.ones_like(routed)), 1))
        return turned.mul_(2.0).sub_(1.0).to(x.dtype)


class Laurel(nn.Module):
    """A product of low rank."""

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__()
        hidden, rank = config.hidden_size, config.laurel_rank
        self.linear_left = Linear(hidden, (Shard("linear_left", rank),))
        self.linear_right = Linear(rank, (Shard("linear_right", hidden),))
        self.post_laurel_norm = norm_of(config)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        y = self.linear_right(self.linear_left(x, ctx), ctx)
        return self.post_laurel_norm(y, ctx).add_(x)

    __call__ = forward


class Gemma3nLayer(LayerWithInput):
    """A layer that computes one of the streams."""

    def __init__(self, config: Gemma3nConfig, options: WeightOptions, layer: int) -> None:
        super().__init__(config, options, layer)
        self.altup = AltUp(config)
        self.laurel = Laurel(config)
        self._active = config.active_stream
        self._scales_corrected = config.scales_corrected
        if config.sparsities[layer]:
            deviations = NormalDist().inv_cdf(config.sparsities[layer])
            self.mlp.gate = partial(sparse_gate, gate=self.mlp.gate, deviations=deviations)

    def forward(
        self, x: Tensor, streams: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """Run the layer on the streams, [N, T, C], which are mutated. `x` is returned as it is."""
        predicted = self.altup.predict(streams, ctx)
        active = predicted[self._active].to(streams.dtype)
        normed = self.input_layernorm(active, ctx)
        beside = self.laurel(normed, ctx)
        attended = self.post_attention_layernorm(self.self_attn(normed, rotation, ctx), ctx)
        joined = attended.add_(active).add_(beside).mul_(0.5**0.5)
        y = self.mlp(self.pre_feedforward_layernorm(joined, ctx), ctx)
        computed = self.post_feedforward_layernorm(y, ctx).add_(joined)
        self.altup.correct(predicted, computed, ctx)
        first = predicted[self._active].to(streams.dtype)
        if self._scales_corrected:
            first = first * self.altup.correct_output_scale.weight
        added = self.from_input(first, ctx)
        for i, stream in enumerate(predicted):
            streams[i].copy_(stream.add_(added) if i else stream)
        return x

    __call__ = forward


class StreamsModel(ModelWithInputs):
    """A model whose embedding becomes several streams, and whose streams become one state."""

    def __init__(self, *parts: Any, config: Gemma3nConfig) -> None:
        super().__init__(*parts, config=config)
        hidden, others = config.hidden_size, range(config.num_streams - 1)
        self.altup_projections = nn.ModuleList(
            Linear(hidden, (Shard(str(i), hidden),)) for i in others
        )
        self.altup_unembed_projections = nn.ModuleList(
            Linear(hidden, (Shard(str(i), hidden),)) for i in others
        )

    def run_layers(self, residual: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """Run all layers on the embedded rows and return the mean of the streams. The rows become
        zeros."""
        size = _root_mean_square(residual)
        others = (_sized(layer(residual, ctx), size) for layer in self.altup_projections)
        streams = torch.stack((residual, *others))
        super().run_layers(streams, positions, ctx)
        first = streams[0]
        size, total = _root_mean_square(first), first.float()
        for number, layer in enumerate(self.altup_unembed_projections, 1):
            total = total + _sized(layer(streams[number], ctx), size).float()
        residual.zero_()
        return (total / len(streams)).to(residual.dtype)


def sparse_gate(gate_up: Tensor, gate: Callable[[Tensor], Tensor], deviations: float) -> Tensor:
    """Lower gates to so many standard deviations above their mean, and those below to zero, before
    they are activated: [T, 2·I] → [T, I]. `gate_up` is mutated."""
    # Recordings do not take `chunk`, which returns a list.
    gates = gate_up.narrow(1, 0, gate_up.shape[1] // 2)
    x = gates.float()
    x = x - x.mean(1, keepdim=True)
    spread = x.square().mean(1, keepdim=True).sqrt_()
    gates.copy_(torch.relu(x - spread * deviations))
    return gate(gate_up)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Gemma3nConfig)
    options.parallel.refuse_several("Gemma 3n")
    return Decoder(
        config,
        options,
        lambda layer: Gemma3nLayer(config, options, layer),
        norm=norm_of(config),
        ropes=[config.rope_of(layer) for layer in range(config.num_hidden_layers)],
        embedding_scale=config.hidden_size**0.5,
        soft_cap=config.logit_soft_cap,
        create_model=partial(StreamsModel, config=config),
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    inner_sizes = _inner_sizes(keys, num_layers)
    values = {**keys.values, "intermediate_size": max(inner_sizes)}
    keys = MetadataKeys(values, keys.source)
    sizes = json_keys.size_fields(keys, head_dim=HEAD_DIM, tied=True)
    types = [SLIDING if (layer + 1) % PERIOD else FULL for layer in range(num_layers)]
    windows = json_keys.layer_windows(keys, keys.integer("sliding_window", WINDOW), types)
    num_streams = keys.integer("altup_num_inputs", 4, high=64)
    return Gemma3nConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **rope_fields(keys, ROPES),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_activation", "gelu_pytorch_tanh"),
        windows=windows,
        kv_sources=kv_sources(keys, windows, SHARED_LAYERS),
        inner_sizes=inner_sizes,
        num_experts=0,
        experts_per_token=0,
        expert_size=0,
        normalised=True,
        logit_soft_cap=keys.number("final_logit_softcapping", 30.0),
        num_streams=num_streams,
        active_stream=keys.integer("altup_active_idx", 0, low=0, high=num_streams - 1),
        scales_corrected=keys.flag("altup_correct_scale", True),
        laurel_rank=keys.integer("laurel_rank", 64),
        sparsities=_sparsities(keys, num_layers),
        **input_fields(keys, keys.integer("hidden_size_per_layer_input", INPUT_SIZE)),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file, which has the standard deviations of sparsities."""
    name = keys.own("activation_sparsity_scale")
    deviations = keys.values.get(name)
    if not isinstance(deviations, list) or not all(isinstance(one, float) for one in deviations):
        raise keys.nonsense(name, "a list of numbers")
    names = {
        "altup_num_inputs": "altup.num_inputs",
        "altup_active_idx": "altup.active_idx",
        "num_kv_shared_layers": "attention.shared_kv_layers",
        "hidden_size_per_layer_input": "embedding_length_per_layer_input",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    found = as_json(
        keys,
        names,
        head_dim=keys.integer(keys.own("attention.key_length")),
        layer_types=gguf_layer_types(keys),
        laurel_rank=keys.shapes.get("blk.0.laurel_l.weight", (None,))[0],
        vocab_size_per_layer_input=gguf_input_vocab(keys),
        activation_sparsity_pattern=[
            0.0 if one == -inf else NormalDist().cdf(one) for one in deviations
        ],
        rope_parameters=gguf_ropes(keys),
    )
    return read_json(found)


def _inner_sizes(keys: MetadataKeys, num_layers: int) -> tuple[int, ...]:
    """Read the inner size of each layer's MLP: one for all, or a list."""
    name = "intermediate_size"
    stated = keys.values.get(name)
    entries = stated if isinstance(stated, list) else [stated] * num_layers
    if len(entries) != num_layers:
        raise keys.nonsense(name, f"a number or a list of {num_layers} numbers")
    return tuple(MetadataKeys({name: entry}, keys.source).integer(name) for entry in entries)


def _sparsities(keys: MetadataKeys, num_layers: int) -> tuple[float, ...]:
    name = "activation_sparsity_pattern"
    stated = keys.values.get(name)
    if stated is None:
        sparse = SPARSE_LAYERS if num_layers > SPARSE_LAYERS else 0
        return (SPARSITY,) * sparse + (0.0,) * (num_layers - sparse)
    if (
        not isinstance(stated, list)
        or len(stated) != num_layers
        or not all(isinstance(share, int | float) and 0 <= share < 1 for share in stated)
    ):
        raise keys.nonsense(name, f"a list of {num_layers} numbers from 0 to below 1")
    return tuple(map(float, stated))


def _root_mean_square(x: Tensor) -> Tensor:
    """Compute [T, 1] fp32 of [T, C]."""
    return x.float().square().mean(1, keepdim=True).sqrt_()


def _sized(x: Tensor, size: Tensor) -> Tensor:
    """Bring rows to a root mean square of [T, 1]."""
    own = x.float().square().mean(1, keepdim=True).clamp_(min=LEAST_SQUARE).sqrt_()
    return (x * size / own).to(x.dtype)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="gemma3n_text",
        create=create,
        read_json=read_json,
        gguf="gemma3n",
        read_gguf=read_gguf,
        gguf_tensors=GGUF_TENSORS
        | {
            "altup_proj": "model.altup_projections.*",
            "altup_unembd_proj": "model.altup_unembed_projections.*",
            "altup_correct_scale.weight": "altup.correct_output_scale",
            "altup_correct_coef": "altup.correction_coefs",
            "altup_predict_coef": "altup.prediction_coefs",
            "altup_router": "altup.modality_router",
            "altup_router_norm": "altup.router_norm",
            "laurel_l": "laurel.linear_left",
            "laurel_r": "laurel.linear_right",
            "laurel_post_norm": "laurel.post_laurel_norm",
        },
    ),
)
