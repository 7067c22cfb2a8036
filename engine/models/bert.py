"""BERT, RoBERTa and XLM-RoBERTa. The latter two start positions at another row of the table.

Post-norm layers, learned positions, attention in both directions. Papers: Devlin et al. 2018,
arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.errors import UnsupportedArchitecture
from engine.models.config import MAX_LAYERS
from engine.models.encoder import Encoder, EncoderConfig, EncoderFamily, TextRun
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import activation_named
from engine.models.layers.embedding import TokenEmbedding
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import LayerNorm
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.score_head import HeadForm
from kernels import attention

_MAX_POSITIONS = 1 << 20
"""The most positions that a configuration may state."""


class Embeddings(nn.Module):
    """Embeddings of tokens, positions and token types."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = TokenEmbedding(config.vocab_size, size)
        self.position_embeddings = TokenEmbedding(
            config.first_position + config.max_position_embeddings, size
        )
        self.token_type_embeddings = TokenEmbedding(config.type_vocab_size, size)
        self.LayerNorm = LayerNorm(size, config.layer_norm_eps)
        self._first_position = config.first_position
        self._has_types = config.type_vocab_size > 1

    def forward(self, token_ids: Tensor, positions: Tensor, types: Tensor | None) -> Tensor:
        """Compute [T, C] from token ids, positions and token types, all [T] int64."""
        x = self.word_embeddings(token_ids)
        if types is None or not self._has_types:
            x += self.token_type_embeddings.weight[0]
        else:
            x += self.token_type_embeddings(types)
        x += self.position_embeddings(positions + self._first_position)
        return self.LayerNorm(x)

    __call__ = forward


class SelfAttention(nn.Module):
    """Attention in which each token of a text sees all tokens of that text."""

    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = Linear(
            hidden,
            (Shard("query", hidden), Shard("key", hidden), Shard("value", hidden)),
            bias=True,
        )
        self._num_heads = num_heads

    def forward(self, x: Tensor, runs: Sequence[TextRun]) -> Tensor:
        """Map [T, C] to [T, C]. Texts of one length share a call; no text sees another."""
        qkv = self.qkv(x, NO_CONTEXT)
        parts = torch.split(qkv, [run.num_texts * run.num_tokens for run in runs])
        mixed = [self._of_run(part, run) for part, run in zip(parts, runs, strict=True)]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _of_run(self, qkv: Tensor, run: TextRun) -> Tensor:
        heads = qkv.view(run.num_texts, run.num_tokens, 3, self._num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        return attention(query, key, value).flatten(0, 1)

    __call__ = forward


class Output(nn.Module):
    """A projection back to the hidden size, added to the residual, and the norm."""

    def __init__(self, inner: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(inner, (Shard("dense", config.hidden_size),), bias=True)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Map [T, inner] and the residual [T, C] to [T, C]."""
        return self.LayerNorm(self.dense(x, NO_CONTEXT).add_(before))

    __call__ = forward


class Layer(nn.Module):
    """Attention and an MLP, each followed by a norm. Modules are named as in checkpoints."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.ModuleDict(
            {
                "self": SelfAttention(hidden, config.num_attention_heads),
                "output": Output(hidden, config),
            }
        )
        self.intermediate = nn.ModuleDict(
            {"dense": Linear(hidden, (Shard("dense", inner),), bias=True)}
        )
        self.output = Output(inner, config)
        self._act = activation_named(config.hidden_act)

    def forward(self, x: Tensor, runs: Sequence[TextRun]) -> Tensor:
        """Map [T, C] to [T, C]."""
        x = self.attention["output"](self.attention["self"](x, runs), x)
        return self.output(self._act(self.intermediate["dense"](x, NO_CONTEXT)), x)

    __call__ = forward


class Bert(Encoder):
    """The encoder: embeddings and layers."""

    def __init__(self, config: EncoderConfig, options: WeightOptions) -> None:
        super().__init__(config, options)
        self.embeddings = Embeddings(config)
        layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        runs: Sequence[TextRun],
        types: Tensor | None = None,
    ) -> Tensor:
        """See `Encoder.forward`."""
        x = self.embeddings(token_ids, positions, types)
        layers: Sequence[Layer] = self.encoder["layer"]  # type: ignore[assignment]
        for layer in layers:
            x = layer(x, runs)
        return x


def read_bert(keys: MetadataKeys) -> EncoderConfig:
    """Read the configuration of BERT, where a text's first position is row 0."""
    return _read(keys, "BertModel", first_position=0)


def read_roberta(keys: MetadataKeys) -> EncoderConfig:
    """Read the configuration of RoBERTa, where positions begin after the padding token's."""
    return _read(keys, "RobertaModel", first_position=keys.integer("pad_token_id", 1, low=0) + 1)


def _read(keys: MetadataKeys, architecture: str, first_position: int) -> EncoderConfig:
    if keys.text("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedArchitecture(
            "encoders need position_embedding_type absolute; other types are not supported"
        )
    rows = keys.integer("max_position_embeddings", 512, low=first_position + 1, high=_MAX_POSITIONS)
    return EncoderConfig(
        architecture=architecture,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=keys.integer("hidden_size"),
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=keys.integer("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=keys.integer("num_attention_heads"),
        max_position_embeddings=rows - first_position,
        first_position=first_position,
        type_vocab_size=keys.integer("type_vocab_size", 2),
        layer_norm_eps=keys.number("layer_norm_eps", 1e-12),
        hidden_act=keys.text("hidden_act", "gelu"),
    )


def _bert_head(keys: MetadataKeys) -> HeadForm:
    return HeadForm(dense="bert.pooler.dense", activation=torch.tanh, out="classifier")


def _roberta_head(keys: MetadataKeys) -> HeadForm:
    return HeadForm(dense="classifier.dense", activation=torch.tanh, out="classifier.out_proj")


ENCODERS = (
    EncoderFamily(
        architectures=(
            "BertModel",
            "BertForMaskedLM",
            "BertForPreTraining",
            "BertForSequenceClassification",
        ),
        model_type="bert",
        prefix="bert.",
        create=Bert,
        read_json=read_bert,
        read_head=_bert_head,
    ),
    *(
        EncoderFamily(
            architectures=tuple(
                f"{name}{part}" for part in ("Model", "ForMaskedLM", "ForSequenceClassification")
            ),
            model_type=model_type,
            prefix="roberta.",
            create=Bert,
            read_json=read_roberta,
            read_head=_roberta_head,
        )
        for name, model_type in (("Roberta", "roberta"), ("XLMRoberta", "xlm-roberta"))
    ),
)
