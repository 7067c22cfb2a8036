"""Encodes prompts with the lower layers of a language model (FLUX.2)."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.diffusion.prompt.t5 import WholeTextEncoder
from engine.errors import UnsupportedArchitecture


class LanguageModelEncoder(WholeTextEncoder):
    """A language model with its tokenizer. The states are outputs of several layers, side by side.

    Layers above the last of them, the output layer, and the part of a model that sees pictures are
    dropped.

    Args:
        layers: the numbers of the layers, counted from 1.
        frame: the text before and after a prompt, as a chat template writes it.
        unread: texts that are removed from prompts.
        max_sequence_length: the tokens, of the frame too, to which a text is padded and cut.

    Raises:
        UnsupportedArchitecture: the model has too few layers.
    """

    name = "text encoder"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        *,
        layers: Sequence[int],
        frame: tuple[str, str],
        unread: Sequence[str] = (),
        max_sequence_length: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.model = _lower_layers(model.get_decoder(), max(layers))
        self._layers = tuple(layers)
        self._frame = frame
        self._unread = tuple(unread)
        self._length = max_sequence_length
        self._num_frame_tokens = len(self._token_ids(""))

    def _encode_text(self, text: str) -> tuple[torch.Tensor, int, bool]:
        for unread in self._unread:
            text = text.replace(unread, "")
        num_tokens = len(self._token_ids(text))
        padded = self._tokenizer(
            "".join((self._frame[0], text, self._frame[1])),
            add_special_tokens=False,
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(self.model.device)
        found = self.model(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        states = torch.cat([found[layer] for layer in self._layers], dim=-1)
        num_read = min(num_tokens, self._length) - self._num_frame_tokens
        return states, max(0, num_read), num_tokens > self._length

    def _token_ids(self, text: str) -> list[int]:
        """The tokens of a text in its frame, however many."""
        token_ids: list[int] = self._tokenizer(
            "".join((self._frame[0], text, self._frame[1])),
            add_special_tokens=False,
            verbose=False,
        )["input_ids"]
        return token_ids


def _lower_layers(decoder: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """The decoder up to a layer, whose output it gives without the last norm."""
    if len(decoder.layers) <= num_layers:
        raise UnsupportedArchitecture(
            f"the text encoder has {len(decoder.layers)} layers; this model needs the output of "
            f"layer {num_layers} and layers above it"
        )
    decoder.layers = decoder.layers[:num_layers]
    decoder.norm = nn.Identity()
    return decoder.eval()
