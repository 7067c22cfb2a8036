"""Names of tensors in checkpoints of models for pictures and text."""

from engine.quantization.plan import PICTURE_ENCODER

_PARTS = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
    "language_model.": "model.",
    "text_model.": "model.",
    "vision_tower.vision_model.": f"{PICTURE_ENCODER}tower.",
    "vision_tower.": f"{PICTURE_ENCODER}tower.",
    "vision_model.": f"{PICTURE_ENCODER}tower.",
    "multi_modal_projector.": f"{PICTURE_ENCODER}projector.",
    "connector.": f"{PICTURE_ENCODER}projector.",
    "visual.merger.ln_q.": f"{PICTURE_ENCODER}merger.norm.",
    "visual.merger.mlp.0.": f"{PICTURE_ENCODER}merger.linear_fc1.",
    "visual.merger.mlp.2.": f"{PICTURE_ENCODER}merger.linear_fc2.",
    "visual.": PICTURE_ENCODER,
}
"""Beginnings of names in files of all releases of transformers, some with `model.` before them, and
the model's own."""
_OF_DECODERS = ("embed_tokens.", "layers.", "norm.", "lm_head.")
"""Beginnings in files that name the decoder's tensors as if it were alone."""


def unwrapped(name: str) -> str:
    """Return the model's name for a tensor of such a checkpoint. All but the decoder counts as the
    encoder for pictures."""
    rest = name.removeprefix("model.")
    for stored, own in _PARTS.items():
        if rest.startswith(stored):
            return own + rest.removeprefix(stored)
    return name if rest.startswith(_OF_DECODERS) else PICTURE_ENCODER + rest
