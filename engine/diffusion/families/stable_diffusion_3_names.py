"""The original release's names of Stable Diffusion 3's modules; it fuses some projections."""

from collections.abc import Mapping
from typing import Any

from engine.diffusion.families.original_names import OriginalNames

_SIDES = {
    "x_block": {
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.proj": ("attn.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
        "adaLN_modulation.1": ("norm1.linear",),
        "attn.ln_q": ("attn.norm_q",),
        "attn.ln_k": ("attn.norm_k",),
        "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "attn2.proj": ("attn2.to_out.0",),
        "attn2.ln_q": ("attn2.norm_q",),
        "attn2.ln_k": ("attn2.norm_k",),
    },
    "context_block": {
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.proj": ("attn.to_add_out",),
        "mlp.fc1": ("ff_context.net.0.proj",),
        "mlp.fc2": ("ff_context.net.2",),
        "adaLN_modulation.1": ("norm1_context.linear",),
        "attn.ln_q": ("attn.norm_added_q",),
        "attn.ln_k": ("attn.norm_added_k",),
    },
}
_OUTSIDE = {
    "context_embedder": "context_embedder",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def original_names(config: Mapping[str, Any]) -> OriginalNames:
    """The original names of a transformer. The halves of its last modulation are exchanged, and
    those of the text's modulation in the last block.

    Args:
        config: the transformer's config, with its number of blocks.
    """
    num_blocks = int(config["num_layers"])
    last = f"joint_blocks.{num_blocks - 1}.context_block.adaLN_modulation.1"
    modules: dict[str, tuple[str, ...]] = {name: (renamed,) for name, renamed in _OUTSIDE.items()}
    for number in range(num_blocks):
        for side, table in _SIDES.items():
            for name, parts in table.items():
                original = f"joint_blocks.{number}.{side}.{name}"
                modules[original] = tuple(f"transformer_blocks.{number}.{p}" for p in parts)
    return OriginalNames(
        modules=modules,
        swapped={
            "final_layer.adaLN_modulation.1": "norm_out.linear",
            last: modules.pop(last)[0],
        },
        parameters={"pos_embed": "pos_embed.pos_embed"},
    )
