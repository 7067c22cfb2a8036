"""Encodes prompts with a whole language model (Z-Image, Qwen-Image)."""

import torch
from transformers import PreTrainedModel, Qwen2Tokenizer

from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.t5 import WholeTextEncoder
from engine.diffusion.prompt.text import PromptText


class LanguagePromptEncoder(WholeTextEncoder):
    """A language model with its tokenizer, whose states between two layers encode a prompt.

    The prompt stands in a template, as the denoiser was trained. Each prompt is encoded alone and
    without padding, so there are as many states as tokens.

    Args:
        template: the text around a prompt, with `{}` for the prompt. The checkpoint's own chat
            template would be foreign code.
        layer: the layer whose input is taken, counted from the end; -1 is the last layer's output
            after the model's norm.
        num_dropped: the number of first tokens whose states are left out.
        max_tokens: the most states that are kept; the text is cut behind them.
    """

    name = "text encoder"

    def __init__(
        self,
        tokenizer: Qwen2Tokenizer,
        model: PreTrainedModel,
        *,
        template: str,
        layer: int,
        num_dropped: int = 0,
        max_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.model = model
        self._template, self._layer = template, layer
        self._num_dropped, self._length = num_dropped, num_dropped + max_tokens
        self._num_around = len(self._tokens(template.format("")))
        self._room = self._length - len(self._tokens(template.partition("{}")[0]))

    @property
    def width(self) -> int:
        """The numbers in a state."""
        return int(self.model.config.get_text_config().hidden_size)

    def states(self, prompt: PromptText) -> PromptStates:
        """The states `[1, L, D]` of one prompt, which are those of diffusers' pipelines.

        Raises:
            InvalidParameter: the prompt cannot be read (`encode`).
        """
        text = self.encode(prompt)
        return PromptStates(
            key=prompt, states=text.states, num_tokens=text.num_tokens, warnings=text.warnings
        )

    def _encode_text(self, text: str) -> tuple[torch.Tensor, int, bool]:
        token_ids = self._tokens(self._template.format(text))
        num_tokens = len(token_ids) - self._num_around
        states = self._states(token_ids[: self._length])
        return states, min(num_tokens, self._room), num_tokens > self._room

    def _states(self, token_ids: list[int], **images: torch.Tensor) -> torch.Tensor:
        """The states `[1, L, D]` of tokens, and of images if the model sees them."""
        batch = torch.tensor([token_ids], device=self.model.device)
        found = self.model(input_ids=batch, output_hidden_states=True, use_cache=False, **images)
        states: torch.Tensor = found.hidden_states[self._layer][:, self._num_dropped :]
        return states

    def _tokens(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return token_ids
