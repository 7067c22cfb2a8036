"""Names of tensors in checkpoints of models for pictures and text."""

from engine.quantization.plan import PICTURE_ENCODER

_PARTS = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
    "language_model.": "model.",
    "llm.": "model.",
    "text_model.": "model.",
    "vision_tower.transformer.layers.": f"{PICTURE_ENCODER}blocks.",
    "vision_tower.patch_conv.": f"{PICTURE_ENCODER}patch_embed.proj.",
    "vision_tower.ln_pre.": f"{PICTURE_ENCODER}patch_norm.",
    "vision_tower.encoder.layer.": f"{PICTURE_ENCODER}tower.encoder.layers.",
    "vision_tower.layernorm.": f"{PICTURE_ENCODER}tower.post_layernorm.",
    "vision_tower.vision_model.": f"{PICTURE_ENCODER}tower.",
    "vision_tower.": f"{PICTURE_ENCODER}tower.",
    "vision_model.": f"{PICTURE_ENCODER}tower.",
    "multi_modal_projector.": f"{PICTURE_ENCODER}projector.",
    "connector.": f"{PICTURE_ENCODER}projector.",
    "visual.merger.ln_q.": f"{PICTURE_ENCODER}projector.norm.",
    "visual.merger.mlp.0.": f"{PICTURE_ENCODER}projector.linear_fc1.",
    "visual.merger.mlp.2.": f"{PICTURE_ENCODER}projector.linear_fc2.",
    "visual.merger.": f"{PICTURE_ENCODER}projector.",
    "visual.": PICTURE_ENCODER,
}
"""Name prefixes in files of all releases of transformers, some with `model.` before them, and the
model's own."""
_IN_LAYERS = {
    "vision_tower.transformer.layers.": {
        "attention.o_proj.": "attn.proj.",
        "attention.": "attn.",
        "attention_norm.": "norm1.",
        "ffn_norm.": "norm2.",
        "feed_forward.": "mlp.",
    },
    "vision_tower.encoder.layer.": {
        "attention.projection_layer.": "self_attn.out_proj.",
        "attention.": "self_attn.",
        "layernorm_before.": "layer_norm1.",
        "layernorm_after.": "layer_norm2.",
    },
}
"""The names of what is in the layers of Pixtral's and InternVL's towers, and the model's own."""
_OF_DECODERS = ("embed_tokens.", "layers.", "norm.", "lm_head.")
"""Prefixes in files that name the decoder's tensors as if it were alone."""


def unwrapped(name: str) -> str:
    """Return the model's name for a tensor of such a checkpoint. All but the decoder counts as the
    encoder for pictures."""
    name = name.removeprefix("thinker.")
    rest = name.removeprefix("model.")
    for stored, own in _PARTS.items():
        if rest.startswith(stored):
            return own + _renamed(rest.removeprefix(stored), stored)
    return name if rest.startswith(_OF_DECODERS) else PICTURE_ENCODER + rest


def _renamed(rest: str, part: str) -> str:
    """Return the end of a tensor's name in the model."""
    number, _, inner = rest.partition(".")
    for stored, own in _IN_LAYERS.get(part, {}).items():
        if inner.startswith(stored):
            return f"{number}.{own}{inner.removeprefix(stored)}"
    return rest
