"""ModernBERT: pre-norm layers with rotary positions, of which most see only near tokens.

Paper: Warner et al. 2024, arXiv:2412.13663.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.errors import ModelLoadError
from engine.models import json_keys
from engine.models.config import MAX_LAYERS
from engine.models.encoder import Encoder, EncoderConfig, EncoderFamily, TextRun
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import activation_named
from engine.models.layers.embedding import TokenEmbedding
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import LayerNorm
from engine.models.layers.rotary import Rope, RotaryTable
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base
from engine.models.score_head import HeadForm
from kernels import attention

_QUERIES = 256
"""The most queries of a call of local attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBertConfig(EncoderConfig):
    """A ModernBERT's shape."""

    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    reaches: tuple[int | None, ...]
    """How many tokens before and after its own each layer sees; None for all."""
    ropes: tuple[Rope, Rope]
    """The rope of layers that see all tokens, and of those that see near ones."""

    def norm(self) -> LayerNorm:
        """A layer norm without weights."""
        return LayerNorm(self.hidden_size, self.layer_norm_eps, shifts=self.norm_bias)


class Attention(nn.Module):
    """Attention in which a token sees the tokens of its text, or those within `reach` of it."""

    def __init__(self, config: ModernBertConfig, reach: int | None) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.attention_bias
        self.Wqkv = Linear(hidden, (Shard("Wqkv", 3 * hidden),), bias=bias)
        self.Wo = Linear(hidden, (Shard("Wo", hidden),), bias=bias)
        self._num_heads = config.num_attention_heads
        self._reach = reach

    def forward(self, x: Tensor, cos_sin: Tensor, runs: Sequence[TextRun]) -> Tensor:
        """Map [T, C] to [T, C], given each row's cosines, then its sines."""
        query, key, value = self.Wqkv(x, NO_CONTEXT).view(len(x), 3, self._num_heads, -1).unbind(1)
        heads = torch.stack((_rotated(query, cos_sin), _rotated(key, cos_sin), value))
        parts = torch.split(heads, [run.num_texts * run.num_tokens for run in runs], 1)
        mixed = [self._of_run(part, run) for part, run in zip(parts, runs, strict=True)]
        return self.Wo(torch.cat(mixed), NO_CONTEXT)

    def _of_run(self, heads: Tensor, run: TextRun) -> Tensor:
        texts = heads.view(3, run.num_texts, run.num_tokens, *heads.shape[2:]).transpose(2, 3)
        if self._reach is None or run.num_tokens <= self._reach + 1:
            return attention(*texts.unbind()).flatten(0, 1)
        return torch.cat([_local(text, self._reach) for text in texts.unbind(1)])

    __call__ = forward


class Mlp(nn.Module):
    """A gated MLP with both projections in one tensor."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.Wi = Linear(hidden, (Shard("Wi", 2 * inner),), bias=bias)
        self.Wo = Linear(inner, (Shard("Wo", hidden),), bias=bias)
        self._act = activation_named(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Map [T, C] to [T, C]."""
        activated, gate = self.Wi(x, NO_CONTEXT).chunk(2, -1)
        return self.Wo(self._act(activated).mul_(gate), NO_CONTEXT)

    __call__ = forward


class Layer(nn.Module):
    """Attention and an MLP, each after a norm; the first layer has no norm before attention, since
    the embeddings are normalised."""

    def __init__(self, config: ModernBertConfig, number: int) -> None:
        super().__init__()
        self.attn_norm = config.norm() if number else nn.Identity()
        self.attn = Attention(config, config.reaches[number])
        self.mlp_norm = config.norm()
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos_sin: Tensor, runs: Sequence[TextRun]) -> Tensor:
        """Map [T, C] to [T, C]."""
        x = x + self.attn(self.attn_norm(x), cos_sin, runs)
        return x + self.mlp(self.mlp_norm(x))

    __call__ = forward


class ModernBert(Encoder):
    """The encoder: embeddings, layers and last norm."""

    def __init__(self, config: EncoderConfig, options: WeightOptions) -> None:
        super().__init__(config, options)
        assert isinstance(config, ModernBertConfig)
        embeddings = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.embeddings = nn.ModuleDict({"tok_embeddings": embeddings, "norm": config.norm()})
        self.layers = nn.ModuleList(
            [Layer(config, number) for number in range(config.num_hidden_layers)]
        )
        self.final_norm = config.norm()
        self._is_local = [reach is not None for reach in config.reaches]
        self._tables = [RotaryTable(rope, options.device) for rope in config.ropes]

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        runs: Sequence[TextRun],
        types: Tensor | None = None,
    ) -> Tensor:
        """See `Encoder.forward`."""
        longest = max(run.num_tokens for run in runs)
        cos_sin = [table.at(positions, longest).cos_sin[positions] for table in self._tables]
        x = self.embeddings["norm"](self.embeddings["tok_embeddings"](token_ids))
        for layer, is_local in zip(self.layers, self._is_local, strict=True):
            x = layer(x, cos_sin[is_local], runs)
        return self.final_norm(x)


def _rotated(heads: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate [T, H, D], computed in fp32."""
    cos, sin = cos_sin.unsqueeze(1).chunk(2, -1)
    one, other = heads.float().chunk(2, -1)
    return torch.cat((one * cos - other * sin, other * cos + one * sin), -1).to(heads.dtype)


def _local(heads: Tensor, reach: int) -> Tensor:
    """Attention within `reach` over one text's queries, keys and values: [3, H, L, D] → [L, H·D].

    The copies lie in memory as they would for the text alone, so the bits are the same.
    """
    num_tokens, mixed = heads.shape[2], []
    for start in range(0, num_tokens, _QUERIES):
        end = min(start + _QUERIES, num_tokens)
        first, last = max(0, start - reach), min(end + reach, num_tokens)
        at = torch.arange(first, last, device=heads.device)
        mask = (at - at[start - first : end - first, None]).abs() <= reach
        query = heads[:1, :, start:end].clone(memory_format=torch.contiguous_format)
        key, value = heads[1:, :, first:last].clone(memory_format=torch.contiguous_format)
        mixed.append(
            F.scaled_dot_product_attention(query, key[None], value[None], attn_mask=mask)[0]
        )
    return torch.cat(mixed, 1).transpose(0, 1).flatten(1)


def read_json(keys: MetadataKeys) -> ModernBertConfig:
    """Read the configuration."""
    hidden, num_heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    positions = keys.integer("max_position_embeddings", 8192, high=1 << 20)
    every = keys.integer("global_attn_every_n_layers", 3)
    types = [json_keys.SLIDING if at % every else json_keys.FULL for at in range(num_layers)]
    reach = keys.integer("local_attention", 128) // 2
    reaches = json_keys.layer_windows(keys, reach, types)
    dim = hidden // num_heads
    if dim % 2:
        raise ModelLoadError(
            f"config.json: heads have {dim} numbers; it must be an even number for rotary positions"
        )
    ropes = (
        _rope(keys, json_keys.FULL, "global_rope_theta", 160_000.0, dim, positions),
        _rope(keys, json_keys.SLIDING, "local_rope_theta", 10_000.0, dim, positions),
    )
    return ModernBertConfig(
        architecture="ModernBertModel",
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=keys.number("norm_eps", 1e-5),
        hidden_act=keys.text("hidden_activation", "gelu"),
        norm_bias=keys.flag("norm_bias", False),
        attention_bias=keys.flag("attention_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
        reaches=reaches,
        ropes=ropes,
    )


def _rope(
    keys: MetadataKeys, layer_type: str, key: str, base: float, dim: int, positions: int
) -> Rope:
    """The rope of a type of layers: transformers 5 has one dictionary for each type, transformers 4
    has a key for the base alone."""
    per_type = keys.values.get("rope_parameters") or {}
    own = per_type.get(layer_type, {}) if isinstance(per_type, dict) else None
    if not isinstance(own, dict):
        raise keys.nonsense("rope_parameters", "an object with one object per type of layers")
    found = json_keys.rope_fields_of(
        dict(own), json_keys.ROPE_SOURCE, positions, rope_base(keys, key, base)
    )
    return Rope(dim, found["rope_theta"], positions, found["rope_scaling"])


def read_head(keys: MetadataKeys) -> HeadForm:
    """Read the form of the head."""
    pooling = keys.text("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise keys.nonsense("classifier_pooling", "cls or mean")
    return HeadForm(
        pooling=pooling,
        dense="head.dense",
        dense_bias=keys.flag("classifier_bias", False),
        activation=activation_named(keys.text("classifier_activation", "gelu")),
        norm="head.norm",
        norm_bias=keys.flag("norm_bias", False),
        norm_eps=keys.number("norm_eps", 1e-5),
        out="classifier",
    )


ENCODERS = (
    EncoderFamily(
        architectures=(
            "ModernBertModel",
            "ModernBertForMaskedLM",
            "ModernBertForSequenceClassification",
        ),
        model_type="modernbert",
        prefix="model.",
        create=ModernBert,
        read_json=read_json,
        read_head=read_head,
    ),
)
