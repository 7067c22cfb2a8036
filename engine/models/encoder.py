"""The interface of every encoder family: whole texts in, hidden states of all their tokens out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import load_weights
from engine.models.metadata_keys import MetadataKeys
from engine.models.score_head import HeadForm


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder's shape. Fields are named as in Hugging Face's config.json."""

    architecture: str
    """An entry of `architectures`, e.g. `BertModel`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    """Tokens of the longest text; the table of positions may have a few more rows."""
    first_position: int = 0
    """The row of the table of positions for a text's first token."""
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str


@dataclass(frozen=True, slots=True)
class TextRun:
    """Neighbouring texts of one length."""

    num_texts: int
    num_tokens: int
    """Tokens of each text."""


def text_runs(lengths: Iterable[int]) -> list[TextRun]:
    """Combine texts of these lengths, in order, into runs. Sorted lengths give the fewest runs."""
    return [TextRun(len(list(equal)), length) for length, equal in groupby(lengths)]


class Encoder(nn.Module, ABC):
    """An encoder up to its last layer. Weights come with `load_weights`."""

    def __init__(self, config: EncoderConfig, options: WeightOptions) -> None:
        super().__init__()
        self.config = config
        self.options = options

    @abstractmethod
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        runs: Sequence[TextRun],
        types: Tensor | None = None,
    ) -> Tensor:
        """Compute hidden states, where each token of a text sees all tokens of that text.

        Args:
            token_ids: [T] int64, text after text.
            positions: [T] int64, within each text, from 0.
            runs: the texts; together they have T tokens.
            types: [T] int64, 0 or 1; None if all are 0. Encoders with one token type ignore it.

        Returns:
            [T, C]. On a CPU with the native operations, or with `deterministic`, a text's rows have
                the same bits whatever the other texts are.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Fill the encoder from pairs of a name without the family's prefix and a tensor; return
        the names that it ignored.

        Raises:
            MissingWeight: the checkpoint lacks a tensor.
            ShapeMismatch: a tensor's shape differs from the configuration's.
        """
        return load_weights(self, weights, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFamily:
    """A family of encoders. Each module lists its families as `ENCODERS`."""

    architectures: tuple[str, ...]
    """The entries of `architectures` in config.json that belong to this family alone. Architectures
    with heads, such as `BertForMaskedLM`, count as the encoder below them."""
    model_type: str
    """The `model_type` in config.json, for files that state no architecture."""
    prefix: str
    """The prefix of the encoder's tensors in checkpoints that also have a head."""
    create: Callable[[EncoderConfig, WeightOptions], Encoder]
    """Builds an encoder without weights."""
    read_json: Callable[[MetadataKeys], EncoderConfig]
    """Reads the keys of config.json."""
    read_head: Callable[[MetadataKeys], HeadForm]
    """Reads the form of the head that scores a text, in checkpoints that have one."""
