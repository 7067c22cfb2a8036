"""Token ids of texts in, one embedding of each text out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.models.encoder import Encoder, text_runs

Pooling = Literal["mean", "cls", "max", "last"]

_POOL: Mapping[Pooling, Callable[[Tensor], Tensor]] = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.amax(0),
    "last": lambda hidden: hidden[-1],
}
"""Functions that reduce one text's hidden states, [L, C] in fp32, to [C]."""
POOLINGS: tuple[Pooling, ...] = tuple(_POOL)


class Embedder(Protocol):
    """A model that embeds texts."""

    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Embed texts.

        Args:
            texts: token ids, none empty, none longer than the model takes.

        Returns:
            [B, C] in fp32, in the order of the texts, not normalised. Each embedding depends on its
                own text alone, except for rounding, and exactly where `Encoder.forward` promises
                it.
        """
        ...


class SentenceEncoder:
    """An encoder with the pooling that reduces the states of a text's tokens to one."""

    def __init__(self, encoder: Encoder, pooling: Pooling) -> None:
        self.encoder = encoder
        self._pooling = pooling

    @torch.inference_mode()
    def embed(
        self, texts: Sequence[Sequence[int]], first_lengths: Sequence[int] | None = None
    ) -> Tensor:
        """See `Embedder.embed`.

        Args:
            first_lengths: the number of first tokens of each text that have token type 0, while
                those after them have type 1; None if all have type 0.
        """
        # Sorted by length, since neighbours of one length share a call of attention.
        order = sorted(range(len(texts)), key=lambda text: len(texts[text]))
        ordered = [texts[text] for text in order]
        lengths = [len(text) for text in ordered]
        device = self.encoder.options.device
        token_ids = torch.tensor([t for text in ordered for t in text], device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        types = None
        if first_lengths is not None:
            firsts = torch.tensor([first_lengths[text] for text in order], device=device)
            ends = firsts.repeat_interleave(torch.tensor(lengths, device=device))
            types = (positions >= ends).long()
        hidden = self.encoder.forward(token_ids, positions, text_runs(lengths), types)
        pooled = pool(hidden, lengths, self._pooling)
        places = torch.tensor(order, device=device)
        return torch.empty_like(pooled).index_copy_(0, places, pooled)


def pool(hidden: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """Pool [T, C], text after text, to [B, C] in fp32, one text at a time so that the order of a
    text's sums is its own."""
    one = _POOL[pooling]
    return torch.stack([one(states.float()) for states in torch.split(hidden, list(lengths))])
