"""The original releases' names of FLUX.1's and FLUX.2's modules.

The original fuses projections that diffusers keeps separate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.diffusion.families.original_names import OriginalNames


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The names of a release: of single modules, and of those within a block."""

    single: Mapping[str, str]
    double_block: Mapping[str, str]
    single_block: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]]
    """Modules of blocks that are several modules in diffusers."""


_SINGLE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE_BLOCK = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE_BLOCK = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}


FLUX_1 = Release(
    single=_SINGLE, double_block=_DOUBLE_BLOCK, single_block=_SINGLE_BLOCK, fused=_FUSED
)
FLUX_2 = Release(
    single={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
    },
    double_block={
        **{name: one for name, one in _DOUBLE_BLOCK.items() if "attn" in name},
        "img_mlp.0": "ff.linear_in",
        "img_mlp.2": "ff.linear_out",
        "txt_mlp.0": "ff_context.linear_in",
        "txt_mlp.2": "ff_context.linear_out",
    },
    single_block={
        "norm.query_norm": "attn.norm_q",
        "norm.key_norm": "attn.norm_k",
        "linear1": "attn.to_qkv_mlp_proj",
        "linear2": "attn.to_out",
    },
    fused={name: parts for name, parts in _FUSED.items() if name != "linear1"},
)


def original_names(config: Mapping[str, Any], release: Release = FLUX_1) -> OriginalNames:
    """The original names of a transformer.

    Args:
        config: the transformer's config, with its numbers of blocks.
    """
    modules: dict[str, tuple[str, ...]] = {name: (one,) for name, one in release.single.items()}
    singles = (release.single_block, config["num_single_layers"])
    kinds = (
        ("double_blocks", "transformer_blocks", release.double_block, config["num_layers"]),
        ("single_blocks", "single_transformer_blocks", *singles),
    )
    for kind, prefix, renamings, num_blocks in kinds:
        fused = [name for name in release.fused if (name == "linear1") == (kind == "single_blocks")]
        table: dict[str, tuple[str, ...]] = {name: (one,) for name, one in renamings.items()}
        table |= {name: release.fused[name] for name in fused}
        for number in range(num_blocks):
            for name, parts in table.items():
                modules[f"{kind}.{number}.{name}"] = tuple(f"{prefix}.{number}.{p}" for p in parts)
    return OriginalNames(
        modules=modules,
        swapped={"final_layer.adaLN_modulation.1": "norm_out.linear"},
        parameters={"scale": "weight"},
    )
