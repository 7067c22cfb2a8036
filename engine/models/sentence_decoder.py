"""Embeddings by a decoder: whole texts in one pass, the state of the last token of each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.models.causal_lm import CausalLM
from engine.models.sentence_encoder import Pooling, pool
from engine.models.whole_texts import WholeTexts


class SentenceDecoder:
    """A decoder without an output layer as an `engine.models.sentence_encoder.Embedder`.

    Args:
        max_tokens: the most tokens of all texts of a call together.
        max_texts: the most texts of a call.
    """

    def __init__(
        self, model: CausalLM, pooling: Pooling, *, max_tokens: int, max_texts: int
    ) -> None:
        self.model = model
        self._pooling = pooling
        self._texts = WholeTexts(model, max_tokens=max_tokens, max_texts=max_texts)

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """See `Embedder.embed`."""
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]) > 1, -len(texts[i])))
        ordered = [texts[i] for i in order]
        hidden = self._texts.states(ordered)
        pooled = pool(hidden, [len(text) for text in ordered], self._pooling)
        places = torch.tensor(order, device=pooled.device)
        return torch.empty_like(pooled).index_copy_(0, places, pooled)
