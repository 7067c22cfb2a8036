"""Weights of 4 and 8 bits: bitsandbytes on load, and GGUF transformer files.

`quantization_rules` says which layers bitsandbytes quantises.

Papers: LLM.int8(), Dettmers et al. 2022, arXiv:2208.07339; NF4, Dettmers et al. 2023,
arXiv:2305.14314.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

from engine.diffusion.families.bitsandbytes_library import import_bitsandbytes
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.gguf_transformer import (
    Transformer,
    find_gguf,
    load_gguf_transformer,
)
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantization_rules import (
    QUANTIZATIONS,
    Quantization,
    is_quantized,
)
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.errors import ModelLoadError

_INT8_OUTLIERS = 6.0
"""Activations beyond it are multiplied in full precision; the paper's value."""


def check_quantization(name: str) -> Quantization:
    """
    Raises:
        ModelLoadError: no such quantisation, or bitsandbytes is missing or does not start.
    """
    for known in QUANTIZATIONS:
        if name == known:
            if known != "none":
                _bitsandbytes(known)
            return known
    raise ModelLoadError(
        f"image_quantization {name!r} is unknown; use one of {', '.join(QUANTIZATIONS)}"
    )


def quantize(module: nn.Module, name: str, *, dtype: torch.dtype, device: torch.device) -> int:
    """Replace a model's linear layers by quantised ones, in place, on `device`.

    One layer at a time, so that the device never holds the whole model unquantised. The rest of
    the model is left where it is.

    Args:
        module: weights in `dtype`, on the CPU or on `device`.
        dtype: of activations.

    Returns:
        Number of layers replaced; 0 for `none`.

    Raises:
        ModelLoadError: as `check_quantization`; the model has nothing to quantise or is already.
    """
    kind = check_quantization(name)
    if kind == "none":
        return 0
    if hasattr(module, "hf_quantizer") or getattr(module, "is_quantized", False):
        raise ModelLoadError(
            f"image_quantization {kind!r} was asked for, but these weights are quantised already; "
            f"set it to none"
        )
    layers = list(_layers(module, kind))
    if not layers:
        raise ModelLoadError(f"{type(module).__name__} has no layers that {kind} can quantise")
    library = _bitsandbytes(kind)
    for parent, attribute, layer in layers:
        quantized = _quantized(library, layer, kind, dtype)
        setattr(parent, attribute, quantized.to(device))
    return len(layers)


def load_transformer(
    model: type[Transformer], folder: ComponentFolder, path: Path, options: LoadOptions
) -> Transformer:
    """The component `transformer` on the device: packed from GGUF, quantised on load, or plain.

    Args:
        path: of the checkpoint that `folder` reads.

    Raises:
        ModelLoadError: one of its kinds.
    """
    gguf_file = find_gguf(path / "transformer")
    loaded: Transformer
    if gguf_file is not None:
        loaded = load_gguf_transformer(model, gguf_file, dtype=options.dtype, device=options.device)
    else:
        _check_stored(folder.config("transformer"), options)
        loaded = folder.load("transformer", model)
    quantize(loaded, options.quantization, dtype=options.dtype, device=options.device)
    return loaded if gguf_file is not None else loaded.to(options.device)


def _check_stored(config: Mapping[str, Any], options: LoadOptions) -> None:
    """Weights that were saved quantised are diffusers' to load; it does not on a CPU."""
    method = config.get("quantization_config", {}).get("quant_method")
    if method is not None and options.device.type == "cpu":
        raise ModelLoadError(
            f"these weights were saved quantised ({method}), which needs a GPU; take the plain "
            f"weights and set image_quantization, or a GGUF transformer"
        )


def load_t5(
    folder: ComponentFolder, suffix: str, options: LoadOptions, *, length: int
) -> T5PromptEncoder:
    """The components `tokenizer` and `text_encoder` of this suffix, quantised like the denoiser:
    a T5 encoder is nearly as large.

    Args:
        length: tokens that prompts are padded and cut to.

    Raises:
        ModelLoadError: one of its kinds.
    """
    tokenizer = folder.tokenizer(f"tokenizer{suffix}", T5Tokenizer)
    encoder = folder.load(f"text_encoder{suffix}", T5EncoderModel)
    quantize(encoder, options.quantization, dtype=options.dtype, device=options.device)
    return T5PromptEncoder(tokenizer, encoder.to(options.device), max_sequence_length=length)


def _layers(module: nn.Module, kind: Quantization) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, attribute and layer of what is to be quantised."""
    for name, child in list(module.named_modules()):
        if type(child) is nn.Linear and is_quantized(name, child.weight.shape, kind):
            path, _, attribute = name.rpartition(".")
            yield module.get_submodule(path), attribute, child


def _quantized(
    library: ModuleType, layer: nn.Linear, kind: Quantization, dtype: torch.dtype
) -> nn.Module:
    """Quantised when it is moved to a device, the CPU included."""
    shape = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data
    quantized: nn.Module
    if kind == "bnb-nf4":
        quantized = library.nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4")
        quantized.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        quantized = library.nn.Linear8bitLt(
            *shape, has_fp16_weights=False, threshold=_INT8_OUTLIERS
        )
        quantized.weight = library.nn.Int8Params(weight, requires_grad=False)
    if layer.bias is not None:
        quantized.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    quantized.requires_grad_(False)
    return quantized


def _bitsandbytes(kind: str) -> ModuleType:
    try:
        return import_bitsandbytes()
    except ImportError as error:
        raise ModelLoadError(
            f"image_quantization {kind!r} needs the package bitsandbytes, which cannot be "
            f"imported; install it (pip install 'tandem-server[quantization]') or set "
            f"image_quantization to none"
        ) from error
