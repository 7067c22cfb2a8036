"""What can be said of a checkpoint by the class of its pipeline, before anything is loaded."""

import re
from dataclasses import dataclass, replace

from engine.diffusion.families.registry import INDEX
from engine.files.checkpoint_files import read_json
from engine.weights.source import Checkpoint

_HEAD = re.compile(r"(.*\.)?lm_head\.")
_HEAD_AND_EYES = re.compile(r"(.*\.)?(lm_head|visual|vision_tower|multi_modal_projector)\.")
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFacts:
    """The reference images of a pipeline, and the parts of its text encoder that are dropped."""

    max_references: int = 0
    dropped: re.Pattern[str] | None = None
    """The prefixes of the names of dropped tensors."""
    num_text_layers: int | None = None
    """The layers of the text encoder that are kept; None: all of them."""

    def reads(self, component: str, tensor: str) -> bool:
        """Whether a tensor of a component is kept after loading."""
        if component != "text_encoder":
            return True
        if self.dropped is not None and self.dropped.match(tensor):
            return False
        layer = _LAYER.match(tensor)
        return layer is None or self.num_text_layers is None or int(layer[1]) < self.num_text_layers


_QWEN_IMAGE = PipelineFacts(dropped=_HEAD_AND_EYES)
_OTHER = PipelineFacts()
FLUX_2 = PipelineFacts(max_references=10, dropped=_HEAD_AND_EYES, num_text_layers=30)
FACTS = {
    "FluxKontextPipeline": PipelineFacts(max_references=1),
    "Flux2Pipeline": FLUX_2,
    "Flux2KleinPipeline": replace(FLUX_2, num_text_layers=27),
    "QwenImagePipeline": _QWEN_IMAGE,
    "QwenImageImg2ImgPipeline": _QWEN_IMAGE,
    "QwenImageInpaintPipeline": _QWEN_IMAGE,
    "QwenImageEditPipeline": PipelineFacts(max_references=1, dropped=_HEAD),
    "QwenImageEditPlusPipeline": PipelineFacts(max_references=4, dropped=_HEAD),
}


def facts_of(checkpoint: Checkpoint) -> PipelineFacts:
    """The facts by the `_class_name` in a folder's model_index.json."""
    if checkpoint.layout != "diffusers":
        return _OTHER
    return FACTS.get(str(read_json(checkpoint.path / INDEX).get("_class_name")), _OTHER)
