"""The original release's names of Stable Diffusion 3's linear layers; it fuses some projections."""

_SIDES = {
    "x_block": {
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.proj": ("attn.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
        "adaLN_modulation.1": ("norm1.linear",),
    },
    "context_block": {
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.proj": ("attn.to_add_out",),
        "mlp.fc1": ("ff_context.net.0.proj",),
        "mlp.fc2": ("ff_context.net.2",),
        "adaLN_modulation.1": ("norm1_context.linear",),
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


def original_names(num_blocks: int) -> dict[str, tuple[str, ...]]:
    """The original names, and diffusers' names of the layers in them, in order.

    Modulations whose halves are exchanged are left out: the last one, and that of the text in the
    last block.
    """
    names: dict[str, tuple[str, ...]] = {name: (renamed,) for name, renamed in _OUTSIDE.items()}
    for number in range(num_blocks):
        for side, table in _SIDES.items():
            for name, parts in table.items():
                is_last = (number, side) == (num_blocks - 1, "context_block")
                if not (is_last and name == "adaLN_modulation.1"):
                    original = f"joint_blocks.{number}.{side}.{name}"
                    names[original] = tuple(f"transformer_blocks.{number}.{p}" for p in parts)
    return names
