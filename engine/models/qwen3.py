"""Qwen3: Llama with the query and key heads normalised before rotation.

Paper: Yang et al. 2025, arXiv:2505.09388.
"""

import torch
from torch import Tensor, nn

from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from engine.models.layers.attention import PagedAttention
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import RotaryTable, Rotation
from engine.models.layers.weight_slots import WeightOptions


class Qwen3Attention(nn.Module):
    def __init__(self, config: ModelConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.qkv_proj = Linear(
            hidden,
            (
                Shard("q_proj", heads * dim),
                Shard("k_proj", kv_heads * dim),
                Shard("v_proj", kv_heads * dim),
            ),
            bias=config.attention_bias,
            partition="outputs",
        )
        self.o_proj = Linear(
            heads * dim, (Shard("o_proj", hidden),), bias=config.attention_bias, partition="inputs"
        )
        self.q_norm = RmsNorm(dim, config.rms_norm_eps)
        self.k_norm = RmsNorm(dim, config.rms_norm_eps)
        self.attention = PagedAttention(config, layer, options.parallel)

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        norms = self.q_norm.weight, self.k_norm.weight
        return self.o_proj(self.attention(self.qkv_proj(x, ctx), rotation, ctx, *norms), ctx)

    __call__ = forward


class Qwen3DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Qwen3Attention(config, options, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMlp(config)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """`x` is what the layer before adds to the residual stream, which is mutated."""
        x = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, rotation, ctx)
        return self.mlp(self.post_attention_layernorm.add(x, residual), ctx)

    __call__ = forward


class Qwen3Model(nn.Module):
    def __init__(self, config: ModelConfig, options: WeightOptions) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen3DecoderLayer(config, options, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTable(config, options.device)

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        residual = self.embed_tokens(token_ids)
        rotation = self.rotary.at(positions, ctx.batch.longest_context)
        x = torch.zeros_like(residual)
        for layer in self.layers:
            x = layer(x, residual, rotation, ctx)
        return self.norm.add(x, residual)

    __call__ = forward


class Qwen3ForCausalLM(CausalLM):
    """See the module."""

    def __init__(self, config: ModelConfig, options: WeightOptions) -> None:
        super().__init__(config, options)
        self.model = Qwen3Model(config, options)
        self.lm_head = LmHead(self.model.embed_tokens, tied=config.tie_word_embeddings)

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        return self.model(token_ids, positions, ctx)
