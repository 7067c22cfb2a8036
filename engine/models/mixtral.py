"""Mixtral: Mistral with eight or more MLPs per layer, of which each token passes two.

Paper: Jiang et al. 2024, arXiv:2401.04088.
"""

from typing import Any

from torch import Tensor, nn

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, sparse_mlp
from engine.models.experts_config import ExpertsConfig, gguf_expert_fields
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.mlp import MlpNames
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "MixtralForCausalLM"
NAMES = MlpNames(gate="w1", up="w3", down="w2")
EXPERTS, CHOSEN = 8, 2
"""The numbers of experts and of chosen experts where a file lacks them."""


class MixtralLayer(nn.Module):
    """A layer with a norm before attention and one before the experts."""

    def __init__(self, config: ExpertsConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, options, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.block_sparse_moe = sparse_mlp(config, names=NAMES)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.self_attn(self.input_layernorm.add(x, residual, ctx), rotation, ctx)
        return self.block_sparse_moe(self.post_attention_layernorm.add(x, residual, ctx), ctx)

    __call__ = forward


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, ExpertsConfig)
    return Decoder(config, options, lambda layer: MixtralLayer(config, options, layer))


def read_json(keys: MetadataKeys) -> ModelConfig:
    sizes = json_keys.size_fields(keys)
    num_experts = keys.integer("num_local_experts", EXPERTS)
    return ExpertsConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields(keys),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=json_keys.layer_windows(keys, keys.integer("sliding_window", None)),
        num_experts=num_experts,
        experts_per_token=keys.integer("num_experts_per_tok", CHOSEN, high=num_experts),
        expert_size=sizes["intermediate_size"],
        normalised=True,
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file, which has one name for Mixtral, Mistral and Llama."""
    sizes: dict[str, Any] = gguf_keys.size_fields(keys, experts=True)
    return ExpertsConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **gguf_keys.rope_fields(keys),
        **gguf_expert_fields(keys, sizes["intermediate_size"]),
        windows=gguf_keys.layer_windows(keys),
        normalised=True,
    )


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="mixtral",
        create=create,
        read_json=read_json,
        gguf_original=gguf_keys.unpaired_rows,
        gguf_tensors=LAYER_TENSORS
        | {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
            "ffn_up_exps": "block_sparse_moe.experts.*.w3",
            "ffn_down_exps": "block_sparse_moe.experts.*.w2",
        },
    ),
)
