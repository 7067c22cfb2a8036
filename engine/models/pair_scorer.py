"""`PairScorer`: token ids of pairs of texts in, one score of each pair out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.models.causal_lm import CausalLM
from engine.models.sentence_decoder import SentenceDecoder
from engine.models.sentence_encoder import SentenceEncoder

Head = Callable[[Tensor], Tensor]
"""Maps the states of texts, [B, C] in fp32, to their scores, [B] in fp32."""


class YesNoHead:
    """The output layer of a text model as a head: the logit of yes minus that of no."""

    def __init__(self, model: CausalLM, yes: int, no: int) -> None:
        self._model = model
        self._yes = yes
        self._no = no

    def __call__(self, states: Tensor) -> Tensor:
        logits = self._model.compute_logits(states.to(self._model.options.dtype))
        return logits[:, self._yes] - logits[:, self._no]


class PairScorer:
    """A model of whole texts with a head."""

    def __init__(self, texts: SentenceEncoder | SentenceDecoder, head: Head) -> None:
        self._texts = texts
        self._head = head

    @torch.inference_mode()
    def score(self, pairs: Sequence[Sequence[int]], first_lengths: Sequence[int]) -> Tensor:
        """Score pairs.

        Args:
            pairs: token ids, as for `engine.models.sentence_encoder.Embedder.embed`.
            first_lengths: the number of first tokens of each pair that have token type 0, while
                those after them have type 1. Only encoders have types.

        Returns:
            [B] in fp32. Each score depends on its own pair alone, as an embedding does.
        """
        if isinstance(self._texts, SentenceEncoder):
            return self._head(self._texts.embed(pairs, first_lengths))
        return self._head(self._texts.embed(pairs))
