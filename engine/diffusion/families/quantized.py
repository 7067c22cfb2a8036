"""Loads image models with quantised weights, in any format of `engine.quantization`.

A component with quantised files stays packed; other linear layers are quantised while loading if
that is asked for (`quantized_layers` chooses them).
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

from engine.contract.image_settings import ImageQuantization
from engine.diffusion.families.components import ComponentFolder, weight_files
from engine.diffusion.families.foreign_file import load_foreign
from engine.diffusion.families.foreign_headers import find_foreign
from engine.diffusion.families.gguf_transformer import (
    Transformer,
    find_gguf,
    load_gguf_transformer,
)
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.packed_component import load_packed
from engine.diffusion.families.quantized_layers import QUANTIZATIONS, quantized_layer
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.errors import ModelLoadError
from engine.quantization.format import QuantizedLayer
from engine.quantization.method import LinearPart
from engine.quantization.registry import detect, stated_in
from engine.weights.safetensors import file_headers, iter_file_tensors


def check_quantization(name: str) -> ImageQuantization:
    """Check the name of a quantisation.

    Raises:
        ModelLoadError: there is no such quantisation.
    """
    for known in QUANTIZATIONS:
        if name == known:
            return known
    raise ModelLoadError(
        f"image_quantization {name!r} is unknown; use one of {', '.join(QUANTIZATIONS)}"
    )


def quantize(module: nn.Module, name: str, *, dtype: torch.dtype, device: torch.device) -> int:
    """Replace a model's linear layers by quantised ones, in place, on `device`.

    It takes one layer at a time, so that the device never holds the whole model unquantised. The
    rest of the model stays where it is.

    Args:
        module: a model with weights in `dtype`, on the CPU or on `device`.
        dtype: the type of activations.

    Returns:
        The number of replaced layers; 0 for `none`.

    Raises:
        ModelLoadError: there is no such quantisation, or the model has nothing to quantise, or is
            quantised already.
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
    for path, plain, layer in layers:
        part = LinearPart(
            names=(path,),
            in_features=layer.in_features,
            out_features=(layer.out_features,),
            has_bias=plain.bias is not None,
            dtype=dtype,
            device=device,
        )
        part.take(0, "weight", plain.weight.data)
        if plain.bias is not None:
            part.take(0, "bias", plain.bias.data)
        module.set_submodule(path, layer.module(part))
    return len(layers)


def load_transformer(
    model: type[Transformer], folder: ComponentFolder, path: Path, options: LoadOptions
) -> Transformer:
    """Load the component `transformer` onto the device: packed as in its files, quantised while
    loading, or plain. Its folder may hold a GGUF file, or a file with names of another tool.

    Args:
        path: the path of the checkpoint that `folder` reads.

    Raises:
        ModelLoadError: it cannot be loaded.
    """
    component = path / "transformer"
    gguf_file = find_gguf(component)
    loaded: Transformer
    if gguf_file is not None:
        loaded = load_gguf_transformer(model, gguf_file, dtype=options.dtype, device=options.device)
        quantize(loaded, options.quantization, dtype=options.dtype, device=options.device)
        return loaded
    foreign = find_foreign(component)
    if foreign is not None:
        loaded = load_foreign(model, foreign, options)
        quantize(loaded, options.quantization, dtype=options.dtype, device=options.device)
        loaded.to(options.device)
        return loaded
    stated = stated_in(folder.config("transformer"))
    _, files = weight_files(component, options.dtype)
    headers = {name: one for file in files for name, one in file_headers(file).items()}
    found = detect(stated, headers)
    if found is not None:
        layers = found[1].layers(headers, options.device.type)
        tensors = chain.from_iterable(map(iter_file_tensors, files))
        loaded = load_packed(model, component, tensors, layers, options)
    else:
        _check_stored(stated, options)
        loaded = folder.load("transformer", model)
    quantize(loaded, options.quantization, dtype=options.dtype, device=options.device)
    loaded.to(options.device)
    return loaded


def _check_stored(stated: Mapping[str, Any], options: LoadOptions) -> None:
    """Refuse weights that were saved in a format which only diffusers loads, and only on a GPU."""
    method = stated.get("quant_method")
    if method is not None and options.device.type == "cpu":
        raise ModelLoadError(
            f"these weights were saved quantised ({method}), which needs a GPU; take the plain "
            f"weights and set image_quantization, or a GGUF transformer"
        )


def load_t5(
    folder: ComponentFolder,
    suffix: str,
    options: LoadOptions,
    *,
    length: int,
    encoder_class: type[T5PromptEncoder] = T5PromptEncoder,
) -> T5PromptEncoder:
    """Load the components `tokenizer` and `text_encoder` with this suffix, quantised like the
    denoiser, since a T5 encoder is nearly as large.

    Args:
        length: the number of tokens to which prompts are padded and cut.
        encoder_class: how prompts are encoded.

    Raises:
        ModelLoadError: they cannot be loaded.
    """
    tokenizer = folder.tokenizer(f"tokenizer{suffix}", T5Tokenizer)
    encoder = folder.load(f"text_encoder{suffix}", T5EncoderModel)
    quantize(encoder, options.quantization, dtype=options.dtype, device=options.device)
    return encoder_class(tokenizer, encoder.to(options.device), max_sequence_length=length)


def _layers(
    module: nn.Module, kind: ImageQuantization
) -> Iterator[tuple[str, nn.Linear, QuantizedLayer]]:
    """The layers to quantise: each path, the plain layer and its quantised form."""
    for path, child in module.named_modules():
        if type(child) is nn.Linear:
            layer = quantized_layer(path, (child.out_features, child.in_features), kind)
            if layer is not None:
                yield path, child, layer
