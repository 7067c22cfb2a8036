"""Gives components' weights the names of the original Stable Diffusion code."""

import re
from collections.abc import Mapping

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE = [
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
]
_OPEN_CLIP = [
    (r"^text_model\.", ""),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    ("layer_norm", "ln_"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
]


def unet_tensors(unet: nn.Module) -> Tensors:
    """Name the UNet's tensors, under `model.diffusion_model.`."""
    layers = int(unet.config.layers_per_block) + 1  # type: ignore[union-attr, arg-type]
    return {
        f"model.diffusion_model.{_unet_name(name, layers, unet)}": tensor
        for name, tensor in unet.state_dict().items()
    }


def vae_tensors(vae: nn.Module) -> Tensors:
    """Name the VAE's tensors, under `first_stage_model.`. Attention's projections are 1x1
    convolutions there."""
    last = len(vae.config.block_out_channels) - 1  # type: ignore[union-attr, arg-type]
    tensors = {}
    for name, tensor in vae.state_dict().items():
        original = re.sub(
            r"up_blocks\.(\d+)\.(resnets\.|upsamplers\.0\.)",
            lambda m: f"up.{last - int(m[1])}.{'block.' if m[2] == 'resnets.' else 'upsample.'}",
            _renamed(name, _VAE),
        )
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", original)
        tensors[f"first_stage_model.{original}"] = (
            tensor[..., None, None] if is_projection else tensor
        )
    return tensors


def clip_tensors(encoder: nn.Module, prefix: str) -> Tensors:
    names = encoder.state_dict().items()
    return {f"{prefix}text_model.{n.removeprefix('text_model.')}": tensor for n, tensor in names}


def open_clip_tensors(encoder: nn.Module, prefix: str) -> Tensors:
    """Name a text encoder's tensors as OpenCLIP does; queries, keys and values are one projection
    there."""
    state = encoder.state_dict()
    tensors: Tensors = {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        original = _renamed(name, _OPEN_CLIP)
        if ".q_proj." in name:
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            original = original.replace(".q_proj.", ".in_proj_")
            tensor = torch.cat(parts)
        tensors[prefix + original] = tensor.T if original == "text_projection" else tensor
    if "text_projection.weight" not in state:
        width = state["final_layer_norm.weight"].shape[0]
        tensors[f"{prefix}text_projection"] = torch.zeros(
            (width, width), device=state["final_layer_norm.weight"].device
        )
    return tensors


def _unet_name(name: str, layers: int, unet: nn.Module) -> str:
    for diffusers_name, original in _UNET.items():
        if name.startswith(f"{diffusers_name}."):
            return original + _inner(name.removeprefix(diffusers_name))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(\..*)", name)
    assert match is not None, name
    way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * layers + (way == "down")
    where = "input_blocks" if way == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{where}.{first + layers - 1}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        has_attention = hasattr(unet.up_blocks[block], "attentions")  # type: ignore[index]
        return f"{where}.{first + layers - 1}.{2 if has_attention else 1}{rest}"
    return f"{where}.{first + layer}.{1 if kind == 'attentions' else 0}{_inner(rest)}"


def _inner(rest: str) -> str:
    """Name a tensor within a residual block; transformer blocks have the same names in both."""
    part, dot, end = rest.removeprefix(".").partition(".")
    return f".{_RESNET.get(part, part)}{dot}{end}"


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def as_halves(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}
