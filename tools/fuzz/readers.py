"""The readers of foreign files: how to make a whole file of each kind, and how it is read."""

import functools
import json
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from engine.weights.source import Checkpoint, resolve_source
from kernels.cache_folder import cache_folder
from tools.fuzz.mutations import changed_bytes, changed_json

_HEADER = struct.Struct("<Q")
_PICTURES = ("PNG", "JPEG", "WEBP")


class Reader:
    """One kind of file.

    Args:
        make: writes whole files into an empty folder and returns what is read.
        read: reads it. Nothing but an `EngineError` may come of any bytes.
    """

    def __init__(self, make: Callable[[Path], Path], read: Callable[[Path], object]) -> None:
        self.make = make
        self.read = read


def change_file(path: Path, rng: Random) -> None:
    """Change a file: its bytes, or the values of its JSON."""
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        data = _dumped(changed_json(json.loads(data), rng))
    elif path.suffix == ".safetensors" and rng.random() < 0.5:
        (size,) = _HEADER.unpack(data[: _HEADER.size])
        header = _dumped(changed_json(json.loads(data[8 : 8 + size]), rng))
        data = _HEADER.pack(len(header)) + header + data[8 + size :]
    else:
        data = changed_bytes(data, rng)
    path.write_bytes(data)


def _dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def _make_checkpoint(folder: Path) -> Path:
    from tools.tiny_models import TINY_MODELS

    TINY_MODELS["llama"].save(folder, seed=1)
    return folder


def _make_gguf(folder: Path) -> Path:
    import gguf
    import numpy as np

    path = folder / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*"abcdefghijklmnopqrstuvwxyzĠ", "ab", "Ġa", "<s>", "</s>", "<u>"])
    writer.add_token_types([1] * 29 + [3] * 3)
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(29)
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"):
        blocks = gguf.quantize(rng.standard_normal((64, 64), np.float32), kind)
        writer.add_tensor(f"blk.0.{name}.weight", blocks, raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _read_text_model(path: Path) -> None:
    from engine.text.tokenizer import load_tokenizer
    from engine.weights.loader import iter_weights, load_model_config, weight_headers

    checkpoint = _found(str(path))
    config = load_model_config(checkpoint)
    weight_headers(checkpoint, config)
    for _, tensor in iter_weights(checkpoint, config):
        tensor.sum()
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("a text, aba"))


_SHAPES = {f"model.layers.{layer}.self_attn.{n}": (8, 8) for layer in (0, 1) for n in "qkv"}


def _make_text_adapter(folder: Path) -> Path:
    from loadtest.random_adapters import write_random_adapter

    write_random_adapter(folder, _SHAPES, 4, seed=1)
    return folder


def _read_text_adapter(folder: Path) -> None:
    import torch

    from engine.lora.peft_files import ModelShapes, plan_adapter

    plan_adapter(folder, ModelShapes(_SHAPES), torch.float32).read()


@functools.cache
def _image_layers() -> Any:
    import torch
    from torch import nn

    from engine.lora.images.layers import AdaptedLayers

    block = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("to_q", "to_k")})
    return AdaptedLayers({"unet": [nn.ModuleDict({"mid": block})]}, device=torch.device("cpu"))


def _make_image_adapter(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name in ("to_q", "to_k"):
        tensors[f"lora_unet_mid_{name}.lora_down.weight"] = torch.ones(4, 8)
        tensors[f"lora_unet_mid_{name}.lora_up.weight"] = torch.ones(8, 4)
        tensors[f"lora_unet_mid_{name}.alpha"] = torch.tensor(4.0)
    path = folder / "a.safetensors"
    save_file(tensors, path, {"ss_network_dim": "4"})
    return path


def _read_image_adapter(path: Path) -> None:
    import torch

    from engine.lora.images.files import plan_adapter, read_changes
    from engine.lora.images.names import layer_names

    layers = _image_layers()
    plan = plan_adapter(path, layer_names(layers), layers.layers)
    read_changes(plan, torch.float32, torch.device("cpu"))


def _found(name: str) -> Checkpoint:
    return resolve_source(name, cache_dir=cache_folder(), on_progress=lambda *_: None)


def _copied(name: str, folder: Path) -> Path:
    """The files of a built-in model."""
    path = _found(name).path
    for file in path.parent.glob(f"{path.stem}.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / path.name


def _read_onnx(path: Path) -> None:
    from engine.matting.network import load_network
    from engine.matting.network_files import read_facts

    load_network(path, read_facts(path), 1)


def _make_archive(folder: Path) -> Path:
    import torch

    from engine.upscaling.srvgg import CompactNet

    path = folder / "a.pth"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = CompactNet(features=8, num_convs=2, scale=2)
    torch.save({"params": net.state_dict()}, path)
    return path


def _read_upscaler(path: Path) -> None:
    import_module("spandrel")  # at the first strange weights it would look like a leak

    from engine.upscaling.loading import load_network

    load_network(_found(str(path)))


def _make_picture(format: str, folder: Path) -> Path:
    from PIL import Image

    path = folder / f"a.{format.lower()}"
    picture = Image.linear_gradient("L").resize((48, 40)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, format, exif=exif)
    return path


def _read_picture(path: Path) -> None:
    from server.images.decoding import decode_grey, decode_image, texts_of

    data = path.read_bytes()
    for read in (decode_image, decode_grey, texts_of):
        read(data, param="image", max_pixels=1 << 20, max_side=4096)


READERS = {
    "checkpoint": Reader(_make_checkpoint, _read_text_model),
    "gguf": Reader(_make_gguf, _read_text_model),
    "text adapter": Reader(_make_text_adapter, _read_text_adapter),
    "image adapter": Reader(_make_image_adapter, _read_image_adapter),
    "onnx": Reader(functools.partial(_copied, "u2netp"), _read_onnx),
    "ncnn": Reader(functools.partial(_copied, "realesr-animevideov3"), _read_upscaler),
    "archive": Reader(_make_archive, _read_upscaler),
    **{
        format.lower(): Reader(functools.partial(_make_picture, format), _read_picture)
        for format in _PICTURES
    },
}
