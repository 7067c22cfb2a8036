"""Encodes an instruction together with the images that it is about (Qwen-Image-Edit)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLModel, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from engine.diffusion.prompt.language import LanguagePromptEncoder
from engine.diffusion.prompt.t5 import TextStates
from engine.diffusion.prompt.text import PromptImage, PromptText

_IMAGE = "<|image_pad|>"
_MARKS = (_IMAGE, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
"""The marks of images, which are removed from prompts."""


class SightedPromptEncoder(LanguagePromptEncoder):
    """A language model that sees images before the prompt, each as a number of tokens. Their states
    belong to those of the prompt. On the engine's thread only.

    Args:
        caption: the text that stands for an image, with `{}` for its number if it has one.
        max_tokens: the most states of the text; those of images come on top.
    """

    def __init__(
        self,
        tokenizer: Qwen2Tokenizer,
        model: Qwen2_5_VLModel,
        processor: Qwen2VLImageProcessorPil,
        *,
        template: str,
        caption: str,
        num_dropped: int,
        max_tokens: int,
    ) -> None:
        super().__init__(
            tokenizer,
            model,
            template=template,
            layer=-1,
            num_dropped=num_dropped,
            max_tokens=max_tokens,
        )
        self._processor = processor
        self._caption = caption
        self._images: Sequence[PromptImage] = ()
        [self._image_token] = self._tokens(_IMAGE)

    def encode(self, prompt: PromptText) -> TextStates:
        self._images = prompt.images
        return super().encode(prompt)

    def _encode_text(self, text: str) -> tuple[torch.Tensor, int, bool]:
        for mark in _MARKS:
            text = text.replace(mark, "")
        pixels = self._processor(
            [Image.fromarray(_array(image)) for image in self._images], return_tensors="pt"
        ).to(self.model.device)
        merged = self._processor.merge_size**2
        counts = (pixels["image_grid_thw"].prod(dim=-1) // merged).tolist()
        captions = "".join(
            self._caption.format(number).replace(_IMAGE, _IMAGE * count)
            for number, count in enumerate(counts, 1)
        )
        num_around = len(self._tokens(self._template.format(captions)))
        token_ids = self._tokens(self._template.format(captions + text))
        num_tokens, room = len(token_ids) - num_around, self._room
        end = self._length + num_around - self._num_around
        is_image = [[int(token == self._image_token) for token in token_ids[:end]]]
        states = self._states(
            token_ids[:end],
            pixel_values=pixels["pixel_values"].to(self.model.dtype),
            image_grid_thw=pixels["image_grid_thw"],
            mm_token_type_ids=torch.tensor(is_image, device=self.model.device),
        )
        return states, min(num_tokens, room), num_tokens > room


def _array(image: PromptImage) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
