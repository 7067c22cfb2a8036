"""Qwen-Image-Edit, and its successors that combine several images.

The transformer sees the images as further tokens, each as a frame of its own, and the text encoder
sees them beside the instruction.

Paper: Wu et al. 2025, arXiv:2508.02324.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from engine.contract.draw import ImageTask
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.qwen_image import QwenImageFamily
from engine.diffusion.prompt.sighted_language import SightedPromptEncoder

_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n{}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
_TEMPLATE_TOKENS = 64
"""The tokens of the template before the images, which the transformer does not see."""
_PROMPT_TOKENS = 1024
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_SIDE = 1024
_IMAGE_MULTIPLE = 32
_MAX_RATIO = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Editing:
    """How a generation of the model sees its input images.

    Attributes:
        caption: the text for an image in the prompt, with `{}` for its number if it has one.
        prompt_pixels: the pixels, about, at which the text encoder sees an image.
        max_images: the most images of an edit.
    """

    caption: str
    prompt_pixels: int
    max_images: int


EDITINGS = {
    "QwenImageEditPipeline": Editing(caption=_IMAGE, prompt_pixels=_SIDE**2, max_images=1),
    "QwenImageEditPlusPipeline": Editing(
        caption="Picture {}: " + _IMAGE, prompt_pixels=384**2, max_images=4
    ),
}
"""The generations by `_class_name` of model_index.json."""


class QwenImageEditFamily(QwenImageFamily):
    """A `QwenImageFamily` that follows instructions about images (see the module).

    Args:
        editing: how it sees them.
    """

    def __init__(self, *, editing: Editing, **parts: Any) -> None:
        super().__init__(**parts)
        side = int((parts.get("defaults") or {}).get("size", _SIDE))
        self.facts = replace(
            self.facts,
            architecture="qwen-image-edit",
            tasks=(ImageTask.EDIT,),
            default_width=side,
            default_height=side,
            references=ReferenceFacts(
                max_images=editing.max_images,
                size_multiple=_IMAGE_MULTIPLE,
                keeps_area=True,
                max_pixels=side * side,
                prompt_pixels=min(editing.prompt_pixels, side * side),
                max_ratio=_MAX_RATIO,
            ),
        )

    @classmethod
    def load_encoder(cls, folder: ComponentFolder) -> SightedPromptEncoder:
        """Load the text encoder without the part that writes text."""
        whole = folder.load("text_encoder", Qwen2_5_VLForConditionalGeneration)
        return sighted_encoder(
            folder.tokenizer("tokenizer", Qwen2Tokenizer),
            whole.model,
            folder.tokenizer(
                "processor", Qwen2VLImageProcessorPil, "Qwen2VLProcessor", "Qwen2_5_VLProcessor"
            ),
            editing_of(folder),
        )

    @classmethod
    def options_of(cls, folder: ComponentFolder) -> dict[str, Any]:
        return {"editing": editing_of(folder)}


def editing_of(folder: ComponentFolder) -> Editing:
    """How the folder's model sees its images."""
    return EDITINGS[str(folder.index["_class_name"])]


def sighted_encoder(
    tokenizer: Qwen2Tokenizer,
    model: Qwen2_5_VLModel,
    processor: Qwen2VLImageProcessorPil,
    editing: Editing,
) -> SightedPromptEncoder:
    """The encoder of instructions, with the template of the model's training."""
    return SightedPromptEncoder(
        tokenizer,
        model,
        processor,
        template=_TEMPLATE,
        caption=editing.caption,
        num_dropped=_TEMPLATE_TOKENS,
        max_tokens=_PROMPT_TOKENS,
    )
