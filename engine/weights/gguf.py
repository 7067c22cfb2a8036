"""Reads the tensors of a GGUF file under Hugging Face names, dequantised or packed.

Every type that the `gguf` library can dequantise is read; blocks become fp32, and F32, F16 and BF16
tensors keep their type. Weights can stay packed if the kernels can multiply with their type. Called
by `loader.py`.
"""

import os
from collections import Counter, deque
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import structlog
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.gguf_keys import NO_WEIGHTS
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
_EMBEDDING, _HEAD = _TOP["token_embd"], _TOP["output"]

_MAX_AHEAD_BYTES = 128 << 20
_CHUNK_ELEMENTS = 1 << 18

log = structlog.get_logger(__name__)


def hugging_face_name(name: str, in_layer: Mapping[str, str]) -> str | None:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; None if unknown.

    Args:
        in_layer: the names within a layer (`Family.gguf_tensors`).
    """
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    if stem in _TOP:
        return f"{_TOP[stem]}.{suffix}"
    prefix, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if prefix == "blk" and layer.isdecimal() and part in in_layer:
        return f"model.layers.{int(layer)}.{in_layer[part]}.{suffix}"
    return None


def named_tensors(path: Path, config: ModelConfig) -> dict[str, GGUFTensor]:
    """The tensors by Hugging Face names, in the order of the file or of its parts.

    Raises:
        CorruptFile: the file is damaged.
        ModelLoadError: no supported family has some tensor, or its type cannot be read.
    """
    named = {}
    in_layer = family_of(config.architecture).gguf_tensors
    for tensor in sorted(read_tensors(path).values(), key=lambda t: (t.path, t.offset)):
        if tensor.name in NO_WEIGHTS:
            continue
        name = hugging_face_name(tensor.name, in_layer)
        if name is None:
            raise ModelLoadError(
                f"{tensor.path.name} holds tensor {tensor.name[:80]!r}, which no supported model "
                f"family has; serve another model"
            )
        if f".{EXPERT}." in name:
            for number, part in enumerate(tensor.parts()):
                named[name.replace(EXPERT, str(number))] = part
        else:
            named[name] = tensor
    return named


def iter_gguf_weights(
    path: Path,
    config: ModelConfig,
    packed: Container[str] = (),
    left_out: Container[str] = (),
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (Hugging Face name, tensor), converting a little ahead of the consumer.

    Weights of the layers in `packed` are [rows, bytes of a row] uint8. If `packed` has the output
    layer of a model that ties it to the embedding, that layer comes last.

    Besides the current tensor this takes the memory of at most `_MAX_AHEAD_BYTES` of converted
    tensors, or of one tensor if that is larger, and of one chunk per thread.
    """
    named = named_tensors(path, config)
    sources = dict(named)
    if config.tie_word_embeddings and _HEAD in packed:
        sources[f"{_HEAD}.weight"] = named[f"{_EMBEDDING}.weight"]
    wanted = [
        (name, tensor, layer in packed)
        for name, tensor in sources.items()
        if (layer := name.rpartition(".")[0]) not in left_out
    ]
    _tell_unpacked(wanted)
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
                heads = _rotary_heads(name, config)
                load = pool.submit(load_tensor, tensor, rotary_heads=heads, packed=is_packed)
                ready.append((name, _fp32_bytes(tensor), load))
            name, num_bytes, future = ready.popleft()
            yield name, future.result()
            ahead_bytes -= num_bytes
    finally:
        pool.shutdown(cancel_futures=True)


def _tell_unpacked(wanted: Sequence[tuple[str, GGUFTensor, bool]]) -> None:
    """Log which weights are unpacked although others stay packed."""
    if not any(is_packed for _, _, is_packed in wanted):
        return
    unpacked = Counter(
        tensor.type.name
        for name, tensor, is_packed in wanted
        if not is_packed and tensor.type not in _PLAIN and name != f"{_EMBEDDING}.weight"
    )
    if unpacked:
        log.info(
            "some weights are unpacked, because they cannot be multiplied in their packed type",
            tensors=dict(unpacked),
        )


def load_tensor(
    tensor: GGUFTensor, *, rotary_heads: int | None = None, packed: bool = False
) -> torch.Tensor:
    """Read one tensor and dequantise it.

    Args:
        rotary_heads: the number of heads, to put rows into Hugging Face's rotary order.
        packed: keep the blocks as they are: [rows, bytes of a row] uint8.

    Raises:
        CorruptFile: the file has become shorter.
        ModelLoadError: the `gguf` library cannot dequantise the type; the message names it.
    """
    flat = tensor.mapped()
    dtype = _PLAIN.get(tensor.type)
    if packed:
        loaded = torch.from_numpy(np.array(flat)).view(tensor.shape[0], -1)
    elif dtype is not None:
        loaded = torch.from_numpy(np.array(flat)).view(dtype).reshape(tensor.shape)
    else:
        loaded = _dequantise(flat, tensor)
    if rotary_heads is None:
        return loaded
    return loaded[_rotary_order(tensor, rotary_heads)]


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


def _rotary_heads(name: str, config: ModelConfig) -> int | None:
    """The number of heads of a q or k projection that llama.cpp stored in its own rotary order.

    Its converter reorders the rows of some families, so that the two halves of a rotated pair are
    neighbours.
    """
    if not family_of(config.architecture).gguf_pairs_rows:
        return None
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def _rotary_order(tensor: GGUFTensor, num_heads: int) -> torch.Tensor:
    """Row i of the result is row `order[i]` of the file: rows (2j, 2j+1) become (j, j + D/2)."""
    num_rows = tensor.shape[0]
    if num_rows % (2 * num_heads):
        raise ModelLoadError(
            f"tensor {tensor.name!r} has {num_rows} rows, which cannot be divided into {num_heads} "
            f"heads with an even number of rows each; the file contradicts its own metadata"
        )
    return torch.arange(num_rows).reshape(num_heads, -1, 2).transpose(1, 2).flatten()
