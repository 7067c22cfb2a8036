"""Tiny transformers as GGUF files, under the names of the original releases."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

_BLOCK = 32
"""The columns of a quantised block."""


def write_gguf(
    path: Path,
    state: Mapping[str, torch.Tensor],
    type_: GGMLQuantizationType,
    *,
    arch: str = "flux",
) -> dict[str, torch.Tensor]:
    """Write matrices of whole blocks in `type_` and the rest in fp32. Returns what the file holds,
    expanded."""
    writer = gguf.GGUFWriter(str(path), arch=arch)
    read_back = {}
    for name, tensor in state.items():
        values = tensor.detach().float().numpy()
        if values.ndim == 2 and values.shape[1] % _BLOCK == 0:
            packed = quantize(values, type_)
            writer.add_tensor(name, packed, raw_dtype=type_)
            values = dequantize(packed, type_)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
        read_back[name] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_back


def original_flux(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to those of black-forest-labs/flux."""
    left, out = dict(state), {}

    def move(new: str, *old: str, kinds: tuple[str, ...] = ("weight", "bias")) -> None:
        for kind in kinds:
            suffix = "scale" if new.endswith("_norm") else kind
            out[f"{new}.{suffix}"] = torch.cat([left.pop(f"{name}.{kind}") for name in old])

    move("img_in", "x_embedder")
    move("txt_in", "context_embedder")
    embedders = {"time_in": "timestep", "vector_in": "text", "guidance_in": "guidance"}
    for new, old in embedders.items():
        if f"time_text_embed.{old}_embedder.linear_1.weight" in left:
            move(f"{new}.in_layer", f"time_text_embed.{old}_embedder.linear_1")
            move(f"{new}.out_layer", f"time_text_embed.{old}_embedder.linear_2")
    move("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        scale, shift = left.pop(f"norm_out.linear.{kind}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for number in _numbers(state, "transformer_blocks"):
        new, old = f"double_blocks.{number}", f"transformer_blocks.{number}"
        for side, norm, added, ff in (
            ("img", "norm1", ("to_{}", "norm_{}", "to_out.0"), "ff"),
            ("txt", "norm1_context", ("add_{}_proj", "norm_added_{}", "to_add_out"), "ff_context"),
        ):
            projection, qk_norm, output = added
            move(f"{new}.{side}_mod.lin", f"{old}.{norm}.linear")
            move(f"{new}.{side}_attn.qkv", *(f"{old}.attn.{projection.format(c)}" for c in "qkv"))
            for letter, word in (("q", "query"), ("k", "key")):
                source = f"{old}.attn.{qk_norm.format(letter)}"
                move(f"{new}.{side}_attn.norm.{word}_norm", source, kinds=("weight",))
            move(f"{new}.{side}_attn.proj", f"{old}.attn.{output}")
            move(f"{new}.{side}_mlp.0", f"{old}.{ff}.net.0.proj")
            move(f"{new}.{side}_mlp.2", f"{old}.{ff}.net.2")
    for number in _numbers(state, "single_transformer_blocks"):
        new, old = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
        move(f"{new}.modulation.lin", f"{old}.norm.linear")
        move(f"{new}.linear1", *(f"{old}.attn.to_{c}" for c in "qkv"), f"{old}.proj_mlp")
        move(f"{new}.linear2", f"{old}.proj_out")
        for letter, word in (("q", "query"), ("k", "key")):
            move(f"{new}.norm.{word}_norm", f"{old}.attn.norm_{letter}", kinds=("weight",))
    assert not left, left.keys()
    return out


def original_flux2(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to those of black-forest-labs/flux2."""
    left, out = dict(state), {}

    def move(new: str, *old: str, kind: str = "weight") -> None:
        out[f"{new}.{kind}"] = torch.cat([left.pop(f"{name}.weight") for name in old])

    move("img_in", "x_embedder")
    move("txt_in", "context_embedder")
    for new, old in {"time_in": "timestep", "guidance_in": "guidance"}.items():
        if f"time_guidance_embed.{old}_embedder.linear_1.weight" in left:
            move(f"{new}.in_layer", f"time_guidance_embed.{old}_embedder.linear_1")
            move(f"{new}.out_layer", f"time_guidance_embed.{old}_embedder.linear_2")
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt"):
        move(f"{name}.lin", f"{name}.linear")
    move("single_stream_modulation.lin", "single_stream_modulation.linear")
    move("final_layer.linear", "proj_out")
    scale, shift = left.pop("norm_out.linear.weight").chunk(2)
    out["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for number in _numbers(state, "transformer_blocks"):
        new, old = f"double_blocks.{number}", f"transformer_blocks.{number}"
        for side, projection, qk_norm, output, ff in (
            ("img", "to_{}", "norm_{}", "to_out.0", "ff"),
            ("txt", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context"),
        ):
            move(f"{new}.{side}_attn.qkv", *(f"{old}.attn.{projection.format(c)}" for c in "qkv"))
            for letter, word in (("q", "query"), ("k", "key")):
                source = f"{old}.attn.{qk_norm.format(letter)}"
                move(f"{new}.{side}_attn.norm.{word}_norm", source, kind="scale")
            move(f"{new}.{side}_attn.proj", f"{old}.attn.{output}")
            move(f"{new}.{side}_mlp.0", f"{old}.{ff}.linear_in")
            move(f"{new}.{side}_mlp.2", f"{old}.{ff}.linear_out")
    for number in _numbers(state, "single_transformer_blocks"):
        new, old = f"single_blocks.{number}", f"single_transformer_blocks.{number}.attn"
        move(f"{new}.linear1", f"{old}.to_qkv_mlp_proj")
        move(f"{new}.linear2", f"{old}.to_out")
        for letter, word in (("q", "query"), ("k", "key")):
            move(f"{new}.norm.{word}_norm", f"{old}.norm_{letter}", kind="scale")
    assert not left, left.keys()
    return out


def original_sd3(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to those of Stability's release, prefix included."""
    left, out = dict(state), {}

    def move(new: str, *old: str, swap: bool = False) -> None:
        for kind in ("weight", "bias"):
            if f"{old[0]}.{kind}" not in left:
                continue
            tensor = torch.cat([left.pop(f"{name}.{kind}") for name in old])
            tensor = torch.cat(tensor.chunk(2)[::-1]) if swap else tensor
            out[f"model.diffusion_model.{new}.{kind}"] = tensor

    out["model.diffusion_model.pos_embed"] = left.pop("pos_embed.pos_embed")
    move("x_embedder.proj", "pos_embed.proj")
    move("context_embedder", "context_embedder")
    for new, old in (("t", "timestep"), ("y", "text")):
        move(f"{new}_embedder.mlp.0", f"time_text_embed.{old}_embedder.linear_1")
        move(f"{new}_embedder.mlp.2", f"time_text_embed.{old}_embedder.linear_2")
    numbers = _numbers(state, "transformer_blocks")
    for number in numbers:
        last = number == numbers[-1]
        new, old = f"joint_blocks.{number}", f"transformer_blocks.{number}"
        move(f"{new}.x_block.attn.qkv", *(f"{old}.attn.to_{c}" for c in "qkv"))
        move(f"{new}.context_block.attn.qkv", *(f"{old}.attn.add_{c}_proj" for c in "qkv"))
        move(f"{new}.x_block.attn.proj", f"{old}.attn.to_out.0")
        move(f"{new}.x_block.adaLN_modulation.1", f"{old}.norm1.linear")
        move(f"{new}.context_block.adaLN_modulation.1", f"{old}.norm1_context.linear", swap=last)
        move(f"{new}.x_block.mlp.fc1", f"{old}.ff.net.0.proj")
        move(f"{new}.x_block.mlp.fc2", f"{old}.ff.net.2")
        for letter in "qk":
            move(f"{new}.x_block.attn.ln_{letter}", f"{old}.attn.norm_{letter}")
            move(f"{new}.context_block.attn.ln_{letter}", f"{old}.attn.norm_added_{letter}")
            move(f"{new}.x_block.attn2.ln_{letter}", f"{old}.attn2.norm_{letter}")
        move(f"{new}.x_block.attn2.qkv", *(f"{old}.attn2.to_{c}" for c in "qkv"))
        move(f"{new}.x_block.attn2.proj", f"{old}.attn2.to_out.0")
        if not last:
            move(f"{new}.context_block.attn.proj", f"{old}.attn.to_add_out")
            move(f"{new}.context_block.mlp.fc1", f"{old}.ff_context.net.0.proj")
            move(f"{new}.context_block.mlp.fc2", f"{old}.ff_context.net.2")
    move("final_layer.linear", "proj_out")
    move("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    assert not left, left.keys()
    return out


def original_z_image(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to those of Tongyi's release. ggml drops leading ones."""
    renamed = {"all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1": "final_layer"}
    renamed |= {"attention.norm_": "attention.", "attention.to_out.0": "attention.out"}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for old, new in renamed.items():
            if old in name and old.endswith("norm_"):
                name = name.replace(".weight", "_norm.weight")
            name = name.replace(old, new)
        out[name] = tensor[0] if name.endswith("_pad_token") else tensor
        if name.endswith("to_v.weight"):
            attention = name.removesuffix("to_v.weight")
            qkv = [out.pop(f"{attention}to_{letter}.weight") for letter in "qkv"]
            out[f"{attention}qkv.weight"] = torch.cat(qkv)
    return out


def _numbers(state: Mapping[str, torch.Tensor], kind: str) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in state if name.startswith(f"{kind}.")})
