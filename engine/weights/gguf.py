"""Reads the tensors of a GGUF file under Hugging Face names, dequantised or packed.

Every type that the `gguf` library can dequantise is read; blocks become fp32, and F32, F16 and BF16
tensors keep their type. Weights can stay packed if the kernels can multiply with their type. Called
by `loader.py`.
"""

import os
from collections import Counter, deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.gguf_keys import NO_WEIGHTS
from engine.models.projector_keys import LAYERS
from engine.models.registry import family_of
from engine.weights.gguf_tensors import GGUFTensor, read_tensors

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "token_embd_norm": "model.norm",  # LFM2's name
    "output": "lm_head",
}
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
EXPERT = "*"
"""A marker in names of `Family.gguf_tensors`: the tensor holds all experts' weights in turn."""
_HEAD = _TOP["output"]
_GATE_UP = ".gate_up_proj."
"""A part of names of tensors with the rows of two matrices."""
_NOTHING = torch.empty(0)
_SINGLE_ROW = "shared_expert_gate.weight"
"""The end of names of matrices with one row, whose axis llama.cpp's tools drop."""
_DRAFTS = ".nextn."
"""A part of names in layers that predict further tokens, which are not read."""

_MAX_AHEAD_BYTES = 128 << 20
_CHUNK_ELEMENTS = 1 << 18

log = structlog.get_logger(__name__)


def hugging_face_name(name: str, names: Mapping[str, str], root: str = "model") -> str | None:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; None if unknown.

    Args:
        names: the family's names (`Family.gguf_tensors`).
        root: the first part of names in the model.
    """
    of_tower = name.startswith(LAYERS)
    prefix, _, rest = name.removeprefix("v." if of_tower else "").partition(".")
    layer, _, part = rest.partition(".")
    if prefix != "blk":
        return _renamed(name, {**_TOP, **names})
    own = _renamed(f"v.{part}" if of_tower else part, names) if layer.isdecimal() else None
    layers = names.get(LAYERS) if of_tower else f"{root}.layers"
    return None if own is None or layers is None else f"{layers}.{int(layer)}.{own}"


def _renamed(name: str, names: Mapping[str, str]) -> str | None:
    """Look a name up, first with its suffix. One without `weight` or `bias` has an empty suffix."""
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return names.get(f"{name}.")
    return names.get(name) or (f"{names[stem]}.{suffix}" if stem in names else None)


def named_tensors(
    path: Path, config: ModelConfig, mmproj: Path | None = None
) -> dict[str, GGUFTensor]:
    """The tensors by Hugging Face names, in the order of the file or of its parts.

    Args:
        mmproj: the file of the encoder for pictures, which is read if the model takes pictures.

    Raises:
        CorruptFile: the file is damaged.
        ModelLoadError: no supported family has some tensor, or its type cannot be read.
    """
    named = {}
    names, root = family_of(config.architecture).gguf_tensors, config.embedding.partition(".")[0]
    tensors = read_tensors(path)
    if mmproj is not None and config.vision is not None:
        tensors = {**tensors, **read_tensors(mmproj)}
    drafting = {layer for name in tensors if (layer := name.partition(_DRAFTS)[0]) != name}
    for tensor in sorted(tensors.values(), key=lambda t: (t.path, t.offset)):
        if tensor.name in NO_WEIGHTS or ".".join(tensor.name.split(".")[:2]) in drafting:
            continue
        name = hugging_face_name(tensor.name, names, root)
        if name is None:
            raise ModelLoadError(
                f"{tensor.path.name} holds tensor {tensor.name[:80]!r}, which no supported model "
                f"family has; serve another model"
            )
        if config.vision is not None:
            name = config.vision.tensor_name(name)
        if next(config.parts_of(name, _NOTHING), None) is None:
            continue
        if name.endswith(_SINGLE_ROW) and len(tensor.shape) == 1:
            tensor = replace(tensor, shape=(1, *tensor.shape))
        if f".{EXPERT}." in name:
            for number, part in enumerate(tensor.parts()):
                own = name.replace(EXPERT, str(number))
                if _GATE_UP in own:
                    gate, up = part.halves()
                    named[own.replace(_GATE_UP, ".gate_proj.")] = gate
                    named[own.replace(_GATE_UP, ".up_proj.")] = up
                else:
                    named[own] = part
        else:
            named[name] = tensor
    return named


def iter_gguf_weights(
    path: Path,
    config: ModelConfig,
    packed: Container[str] = (),
    left_out: Container[str] = (),
    mmproj: Path | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (Hugging Face name, tensor), converting a little ahead of the consumer.

    Weights of the layers in `packed` are [rows, bytes of a row] uint8. If `packed` has the output
    layer of a model that ties it to the embedding, that layer comes last.

    Besides the current tensor this takes the memory of at most `_MAX_AHEAD_BYTES` of converted
    tensors, or of one tensor if that is larger, and of one chunk per thread.
    """
    named = named_tensors(path, config, mmproj)
    sources = dict(named)
    if config.tie_word_embeddings and _HEAD in packed:
        sources[f"{_HEAD}.weight"] = named[f"{config.embedding}.weight"]
    wanted = [
        (name, tensor, layer in packed and tensor.type not in _PLAIN)
        for name, tensor in sources.items()
        if (layer := name.rpartition(".")[0]) not in left_out
    ]
    _tell_unpacked(wanted, config.embedding)
    waiting = deque(wanted)
    ready: deque[tuple[str, int, Future[torch.Tensor]]] = deque()
    ahead_bytes = 0
    # More than two threads would only compete for the interpreter lock between numpy calls.
    pool = ThreadPoolExecutor(min(2, os.cpu_count() or 1), thread_name_prefix="gguf")
    try:
        while waiting or ready:
            while waiting and (
                not ready or ahead_bytes + _fp32_bytes(waiting[0][1]) <= _MAX_AHEAD_BYTES
            ):
                name, tensor, is_packed = waiting.popleft()
                ahead_bytes += _fp32_bytes(tensor)
                load = pool.submit(_load_original, tensor, name, config, packed=is_packed)
                ready.append((name, _fp32_bytes(tensor), load))
            name, num_bytes, future = ready.popleft()
            yield name, future.result()
            ahead_bytes -= num_bytes
    finally:
        pool.shutdown(cancel_futures=True)


def _tell_unpacked(wanted: Sequence[tuple[str, GGUFTensor, bool]], embedding: str) -> None:
    """Log which weights are unpacked although others stay packed."""
    if not any(is_packed for _, _, is_packed in wanted):
        return
    unpacked = Counter(
        tensor.type.name
        for name, tensor, is_packed in wanted
        if not is_packed and tensor.type not in _PLAIN and name != f"{embedding}.weight"
    )
    if unpacked:
        log.info(
            "some weights are unpacked, because they cannot be multiplied in their packed type",
            tensors=dict(unpacked),
        )


def _load_original(
    tensor: GGUFTensor, name: str, config: ModelConfig, *, packed: bool
) -> torch.Tensor:
    """Read a tensor as it was before it was converted."""
    loaded = load_tensor(tensor, packed=packed)
    original = family_of(config.architecture).gguf_original
    return loaded if original is None else original(config, name, loaded)


def load_tensor(tensor: GGUFTensor, *, packed: bool = False) -> torch.Tensor:
    """Read one tensor and dequantise it.

    Args:
        packed: keep the blocks as they are: [rows, bytes of a row] uint8, in the file's memory.

    Raises:
        CorruptFile: the file has become shorter.
        ModelLoadError: the `gguf` library cannot dequantise the type; the message names it.
    """
    flat = tensor.mapped()
    dtype = _PLAIN.get(tensor.type)
    if packed:
        return torch.from_numpy(flat).view(tensor.shape[0], -1)
    if dtype is not None:
        return torch.from_numpy(np.array(flat)).view(dtype).reshape(tensor.shape)
    return _dequantise(flat, tensor)


def _dequantise(flat: np.ndarray, tensor: GGUFTensor) -> torch.Tensor:
    """Dequantise chunks of rows, as the library's temporaries are several times the result."""
    out = torch.empty(tensor.num_elements // tensor.shape[-1], tensor.shape[-1])
    rows = flat.reshape(out.shape[0], -1)
    step = max(1, _CHUNK_ELEMENTS // out.shape[1])
    # A damaged scale may overflow. The result is still a number, and not checked here.
    with np.errstate(all="ignore"):
        for first in range(0, len(rows), step):
            chunk = rows[first : first + step]
            try:
                out[first : first + step] = torch.from_numpy(dequantize(chunk, tensor.type))
            except NotImplementedError as error:
                raise ModelLoadError(
                    f"{tensor.path.name}: tensor {tensor.name!r} has type {tensor.type.name}, "
                    f"which cannot be dequantised; use a file with another quantisation, or make "
                    f"one with llama-quantize"
                ) from error
    return out.reshape(tensor.shape)


def _fp32_bytes(tensor: GGUFTensor) -> int:
    return 4 * tensor.num_elements
