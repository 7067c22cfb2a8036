"""What every encoder family offers: whole texts in, hidden states of all their tokens out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import load_weights
from engine.models.metadata_keys import MetadataKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder's shape. Field names are those of Hugging Face's config.json."""

    architecture: str
    """As in `architectures[0]`, e.g. `BertModel`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    """Tokens of the longest text; the table of positions may have some more rows."""
    first_position: int = 0
    """Row of that table which a text's first token has."""
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str


@dataclass(frozen=True, slots=True)
class TextRun:
    """Neighbouring texts of one length."""

    num_texts: int
    num_tokens: int
    """Of each."""


def text_runs(lengths: Iterable[int]) -> list[TextRun]:
    """Texts of these lengths, in their order, as runs: the fewest if the lengths are sorted."""
    return [TextRun(len(list(equal)), length) for length, equal in groupby(lengths)]


class Encoder(nn.Module, ABC):
    """An encoder without what comes after its last layer. Weights come with `load_weights`."""

    def __init__(self, config: EncoderConfig, options: WeightOptions) -> None:
        super().__init__()
        self.config = config
        self.options = options

    @abstractmethod
    def forward(self, token_ids: Tensor, positions: Tensor, runs: Sequence[TextRun]) -> Tensor:
        """Each token of a text looks at all tokens of that text.

        Args:
            token_ids: [T] int64, text after text.
            positions: [T] int64, in their text, from 0 on.
            runs: the texts; together they have T tokens.

        Returns:
            [T, C]. On a CPU with the native operations, or with `deterministic`, a text's rows have
            the same bits whatever the other texts are.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Fill the encoder from (name without the family's prefix, tensor) pairs; returns the names
        it ignored.

        Raises:
            MissingWeight: the checkpoint lacks a tensor.
            ShapeMismatch: a tensor has another shape than the configuration says.
        """
        return load_weights(self, weights, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFamily:
    """One family of encoders. A module lists its own as `ENCODERS`."""

    architectures: tuple[str, ...]
    """As in `architectures` of config.json; no other family has them. Those of heads, such as
    `BertForMaskedLM`, count as the encoder below."""
    model_type: str
    """As in `model_type` of config.json, for files that state no architecture."""
    prefix: str
    """Of the encoder's tensors where a head is beside it."""
    create: Callable[[EncoderConfig, WeightOptions], Encoder]
    """Builds an encoder without weights."""
    read_json: Callable[[MetadataKeys], EncoderConfig]
    """The keys of config.json."""
