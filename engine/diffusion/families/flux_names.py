"""Converts the names of FLUX.1's and FLUX.2's tensors from the original release's to diffusers'.

The original fuses projections that diffusers keeps separate. They are split by rows, so packed rows
of a quantised matrix are split in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalNames:
    """The original names of a transformer's modules, and diffusers' names for them."""

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
_SHIFT_SCALE = "final_layer.adaLN_modulation.1"


FLUX_1 = OriginalNames(
    single=_SINGLE, double_block=_DOUBLE_BLOCK, single_block=_SINGLE_BLOCK, fused=_FUSED
)
FLUX_2 = OriginalNames(
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


def to_diffusers_names(
    state: Mapping[str, torch.Tensor], *, inner_dim: int, names: OriginalNames = FLUX_1
) -> dict[str, torch.Tensor]:
    """Rename tensors and split fused ones.

    Args:
        inner_dim: the number of attention heads times their width.
        names: the names of the transformer's release.

    Raises:
        KeyError: a tensor does not belong to a FLUX transformer.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        converted.update(_convert(name, tensor, inner_dim, names))
    return converted


def original_names(
    config: Mapping[str, Any], names: OriginalNames = FLUX_1
) -> dict[str, tuple[str, ...]]:
    """The original names of linear layers, and diffusers' names of the layers in them, in order.
    The last modulation is left out, because its halves are exchanged.

    Args:
        config: the transformer's config, with its numbers of blocks.
        names: the names of the transformer's release.
    """
    found: dict[str, tuple[str, ...]] = {name: (one,) for name, one in names.single.items()}
    singles = (names.single_block, config["num_single_layers"])
    kinds = (
        ("double_blocks", "transformer_blocks", names.double_block, config["num_layers"]),
        ("single_blocks", "single_transformer_blocks", *singles),
    )
    for kind, prefix, renamings, num_blocks in kinds:
        fused = [name for name in names.fused if (name == "linear1") == (kind == "single_blocks")]
        table: dict[str, tuple[str, ...]] = {
            name: (one,) for name, one in renamings.items() if "norm." not in name
        }
        table |= {name: names.fused[name] for name in fused}
        for number in range(num_blocks):
            for name, parts in table.items():
                found[f"{kind}.{number}.{name}"] = tuple(f"{prefix}.{number}.{p}" for p in parts)
    return found


def _convert(
    name: str, tensor: torch.Tensor, inner_dim: int, names: OriginalNames
) -> dict[str, torch.Tensor]:
    module, _, suffix = name.rpartition(".")
    suffix = "weight" if suffix == "scale" else suffix
    if module == _SHIFT_SCALE:
        shift, scale = tensor.chunk(2, dim=0)
        return {f"norm_out.linear.{suffix}": torch.cat([scale, shift])}
    if module in names.single:
        return {f"{names.single[module]}.{suffix}": tensor}
    block, prefix, rest = _block_of(module, names)
    if rest in names.fused:
        parts = names.fused[rest]
        sizes = [inner_dim] * 3 + [len(tensor) - 3 * inner_dim] * (len(parts) - 3)
        pieces = torch.split(tensor, sizes, dim=0)
        return {
            f"{prefix}.{part}.{suffix}": torch.cat([piece])
            for part, piece in zip(parts, pieces, strict=True)
        }
    return {f"{prefix}.{block[rest]}.{suffix}": tensor}


def _block_of(module: str, names: OriginalNames) -> tuple[Mapping[str, str], str, str]:
    """The table of names, the block's prefix in diffusers, and the module within the block."""
    kind, _, rest = module.partition(".")
    number, _, rest = rest.partition(".")
    if kind == "double_blocks" and number.isdigit():
        return names.double_block, f"transformer_blocks.{number}", rest
    if kind == "single_blocks" and number.isdigit():
        return names.single_block, f"single_transformer_blocks.{number}", rest
    raise KeyError(module)
