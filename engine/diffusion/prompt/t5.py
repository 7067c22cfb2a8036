"""Encodes prompts with a T5 encoder (SD 3, FLUX.1), and what all encoders of whole texts share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel, T5EncoderModel, T5Tokenizer

from engine.diffusion.prompt.fragments import Blend, Break, Fragment
from engine.diffusion.prompt.syntax import parse_prompt, plain_text
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter


@dataclass(frozen=True, slots=True, eq=False)
class TextStates:
    """The states of one prompt.

    Attributes:
        states: `[1, L, D]` in the encoder's dtype, L the maximum length.
        num_tokens: the number of the prompt's own tokens that were read.
        encoder: the kind of encoder, for the client.
        weights_ignored: whether the prompt has weights, which have no effect here.
        truncated: whether the prompt is longer than the maximum length, so that its end was not
            read.
    """

    states: torch.Tensor
    num_tokens: int
    encoder: str
    weights_ignored: bool = False
    truncated: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the client about ignored weights and a truncated prompt."""
        said = []
        if self.weights_ignored:
            said.append(f"prompt weights have no effect on this model's {self.encoder}")
        if self.truncated:
            said.append(
                f"the prompt is longer than the {self.states.shape[1]} tokens that this model's "
                f"{self.encoder} reads; its end has no effect"
            )
        return tuple(said)


class WholeTextEncoder(ABC):
    """An encoder that reads a prompt as one text.

    Weights have no effect: no syntax defines what they would do to it. Syntaxes other than plain
    are read, and the text is encoded without its weights; compel's `.blend()` works, as it is a sum
    of whole prompts.

    Attributes:
        model: the text encoder.
    """

    model: PreTrainedModel
    name: str
    """The kind of encoder, for the client."""

    def encode(self, prompt: PromptText) -> TextStates:
        """The states of one prompt.

        Raises:
            InvalidParameter: the prompt cannot be read (`parse_prompt`).
        """
        pieces = parse_prompt(prompt.text, prompt.syntax)
        with torch.no_grad():
            if isinstance(pieces[0], Blend):
                return self._encode_blend(pieces[0])
            return self._encode_pieces([p for p in pieces if not isinstance(p, Blend)])

    @abstractmethod
    def _encode_text(self, text: str) -> tuple[torch.Tensor, int, bool]:
        """The states of a text, the number of its own tokens that were read, and whether its end
        was not read."""

    def _encode_blend(self, blend: Blend) -> TextStates:
        parts = [self._encode_pieces(part) for part in blend.parts]
        if len({part.states.shape[1] for part in parts}) > 1:
            raise InvalidParameter(
                "this model cannot blend these prompts, because they differ in their number of "
                "tokens; write one prompt without .blend()",
                param="prompt",
            )
        states = torch.cat([part.states.float() for part in parts])
        weights = torch.tensor(blend.weights, device=states.device)[:, None, None]
        return TextStates(
            (states * weights).sum(dim=0, keepdim=True).to(self.model.dtype),
            sum(part.num_tokens for part in parts),
            self.name,
            weights_ignored=any(part.weights_ignored for part in parts),
            truncated=any(part.truncated for part in parts),
        )

    def _encode_pieces(self, pieces: Sequence[Fragment | Break]) -> TextStates:
        states, num_tokens, truncated = self._encode_text(plain_text(pieces))
        return TextStates(
            states.to(self.model.dtype),
            num_tokens,
            self.name,
            weights_ignored=any(isinstance(p, Fragment) and p.weight != 1.0 for p in pieces),
            truncated=truncated,
        )


class T5PromptEncoder(WholeTextEncoder):
    """A T5 encoder with its tokenizer. The states are those of diffusers' `_get_t5_prompt_embeds`.

    Args:
        max_sequence_length: the tokens to which a prompt is padded and cut (256 in SD 3, 512 in
            FLUX).
    """

    name = "T5 text encoder"
    pads: ClassVar[bool] = True
    """Whether prompts are padded to the maximum length."""

    def __init__(
        self, tokenizer: T5Tokenizer, text_encoder: T5EncoderModel, *, max_sequence_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self.model = text_encoder
        self._length = max_sequence_length

    def _encode_text(self, text: str) -> tuple[torch.Tensor, int, bool]:
        token_ids: list[int] = self._tokenizer(
            text, truncation=False, padding=False, verbose=False
        )["input_ids"]
        truncated = len(token_ids) > self._length
        if truncated:
            # The end token stays, as in the tokenizer's own truncation.
            token_ids = [*token_ids[: self._length - 1], token_ids[-1]]
        num_missing = self._length - len(token_ids) if self.pads else 0
        padding = [self._tokenizer.pad_token_id] * num_missing
        padded = torch.tensor([[*token_ids, *padding]], device=self.model.device)
        states = self.model(padded, return_dict=True).last_hidden_state
        return states, len(token_ids) - 1, truncated
