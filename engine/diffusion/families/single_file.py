"""Loads a Stable Diffusion model from one .safetensors file with the original code's names.

The file holds only weights. Configurations and the CLIP vocabulary, which are the same for all
models of a kind, come from `engine/data/single_file`, so nothing is fetched from the network.
diffusers maps the names.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError, safe_open
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import autoencoder_dtype, place_autoencoder
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.transformer_names import is_transformer
from engine.errors import (
    CorruptFile,
    MissingWeight,
    ModelLoadError,
    ShapeMismatch,
    UnsupportedArchitecture,
)
from engine.files.checkpoint_files import check_regular, read_json
from engine.weights.safetensors import read_file_metadata, read_header

DATA = Path(__file__).parents[2] / "data" / "single_file"

_UNET = "model.diffusion_model."
_CLIP = "cond_stage_model.transformer."
_OPEN_CLIP = "cond_stage_model.model."
_XL_CLIP = "conditioner.embedders.0.transformer."
_XL_OPEN_CLIP = "conditioner.embedders.1.model."
_XL_REFINER = "conditioner.embedders.0.model."

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """The kind of model that a file holds.

    Attributes:
        kind: a folder of `DATA`.
        pipeline: the equivalent diffusers class.
        in_channels: the UNet's input channels.
        is_v: whether it predicts v instead of noise, as far as the file tells.
    """

    kind: str
    pipeline: str
    in_channels: int
    is_v: bool
    is_zero_snr: bool = False


@dataclass(frozen=True, slots=True)
class SingleFileParts:
    """The components of a file; the VAE and the text encoders are on the device."""

    unet: UNet2DConditionModel
    autoencoder: Autoencoder
    encoders: list[tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]]
    scheduler_config: dict[str, Any]


def layout_of(path: Path) -> Layout:
    """Recognise the model by the names and shapes in the file's header.

    Raises:
        UnsupportedArchitecture: it is not one of the models that can be loaded from one file.
        CorruptFile: the file is truncated or damaged.
    """
    header = read_header(path)
    stem = header.get(f"{_UNET}input_blocks.0.0.weight")
    if stem is None or len(stem["shape"]) != 4:
        raise _unsupported(header)
    in_channels = int(stem["shape"][1])
    prefix = "StableDiffusionXL" if _has(header, _XL_OPEN_CLIP) else "StableDiffusion"
    role = {8: "InstructPix2Pix", 9: "Inpaint"}.get(in_channels, "")
    pipeline = f"{prefix}{role}Pipeline"
    metadata = read_file_metadata(path)
    told = metadata.get("modelspec.predict_key", metadata.get("modelspec.prediction_type", ""))
    is_v = "v_pred" in header or told in ("v", "v_prediction")
    if _has(header, _XL_OPEN_CLIP):
        return Layout("sdxl", pipeline, in_channels, is_v, "ztsnr" in header)
    if _has(header, _OPEN_CLIP):
        # Of the published models only those for 768 px predict v; inpainting and base models do
        # not.
        is_v = is_v or (told == "" and in_channels == 4 and "512" not in path.stem)
        return Layout("sd2", pipeline, in_channels, is_v)
    if _has(header, _CLIP):
        return Layout("sd1", pipeline, in_channels, is_v, "ztsnr" in header)
    raise _unsupported(header)


def load(path: Path, options: LoadOptions, *, data: Path = DATA) -> SingleFileParts:
    """Load all components.

    Args:
        data: the folder of configurations and vocabulary.

    Raises:
        ModelLoadError: the file cannot be loaded.
    """
    layout = layout_of(path)
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFile(f"{path.name} is damaged; fetch it again") from error
    return assemble(layout, tensors, options, data=data)


def assemble(
    layout: Layout, tensors: Tensors, options: LoadOptions, *, data: Path = DATA
) -> SingleFileParts:
    """Make the components from a file's tensors; tensors that no component needs are left out.

    Raises:
        MissingWeight, ShapeMismatch: a tensor is missing or has another shape; the message names
            it.
    """
    configs = data / layout.kind
    return SingleFileParts(
        unet=_unet(configs, layout, tensors, options),
        autoencoder=_autoencoder(configs, tensors, options),
        encoders=_encoders(configs, layout, tensors, options, data),
        scheduler_config=_scheduler_config(configs, layout),
    )


def clip_tokenizer(data: Path, pad_token: str) -> CLIPTokenizer:
    """A tokenizer with CLIP's own vocabulary: bytes, bytes that end a word, one token per merge."""
    text = gzip.decompress((data / "clip_merges.txt.gz").read_bytes()).decode()
    merges = [tuple(line.split(" ")) for line in text.splitlines()]
    # CLIP counts printable bytes first, by code point; the others follow as characters above 255.
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)


def _unet(
    configs: Path, layout: Layout, tensors: Tensors, options: LoadOptions
) -> UNet2DConditionModel:
    config = {**read_json(configs / "unet" / "config.json"), "in_channels": layout.in_channels}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return _filled(unet, "unet", convert_ldm_unet_checkpoint(tensors, unet.config), options.dtype)


def _autoencoder(configs: Path, tensors: Tensors, options: LoadOptions) -> Autoencoder:
    config = read_json(configs / "vae" / "config.json")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    dtype = autoencoder_dtype(config, options.dtype)
    converted = convert_ldm_vae_checkpoint(tensors, vae.config)
    return place_autoencoder(_filled(vae, "VAE", converted, dtype), options)


def _encoders(
    configs: Path, layout: Layout, tensors: Tensors, options: LoadOptions, data: Path
) -> list[tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]]:
    prefixes = {
        "sd1": (_CLIP,),
        "sd2": (_OPEN_CLIP,),
        "sdxl": (_XL_CLIP, _XL_OPEN_CLIP),
    }[layout.kind]
    encoders = []
    for prefix, name in zip(prefixes, ("text_encoder", "text_encoder_2"), strict=False):
        config = read_json(configs / name / "config.json")
        encoder = _encoder(config, prefix, tensors, options)
        is_open_clip = prefix in (_OPEN_CLIP, _XL_OPEN_CLIP)
        tokenizer = clip_tokenizer(data, "!" if is_open_clip else "<|endoftext|>")
        encoders.append((tokenizer, encoder))
    return encoders


def _encoder(
    config: Mapping[str, Any], prefix: str, tensors: Tensors, options: LoadOptions
) -> CLIPTextModel | CLIPTextModelWithProjection:
    with_projection = "CLIPTextModelWithProjection" in config["architectures"]
    model_class = CLIPTextModelWithProjection if with_projection else CLIPTextModel
    with torch.device("meta"):
        model = model_class(CLIPTextConfig(**config))
    if prefix in (_OPEN_CLIP, _XL_OPEN_CLIP):
        converted = convert_open_clip_checkpoint(model, tensors, prefix=prefix)
    else:
        converted = convert_ldm_clip_checkpoint(tensors, prefix)
    if not hasattr(model, "text_model"):
        converted = {name.removeprefix("text_model."): t for name, t in converted.items()}
    return _filled(model, "text encoder", converted, options.dtype).to(options.device)


def _filled(model: Any, what: str, tensors: Tensors, dtype: torch.dtype) -> Any:
    """Fill a model on the meta device with these weights; other tensors are left out."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise MissingWeight(
            f"the file's {what} lacks {len(missing)} tensors ({', '.join(missing[:3])}); fetch it "
            f"again"
        )
    state = {}
    for name, place in wanted.items():
        tensor = tensors[name]
        if tensor.shape != place.shape:
            raise ShapeMismatch(
                f"the file's {what} has {name} of shape {list(tensor.shape)}; "
                f"{list(place.shape)} is expected"
            )
        state[name] = nn.Parameter(tensor.to(dtype).contiguous(), requires_grad=False)
    _materialise_buffers(model)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _materialise_buffers(model: nn.Module) -> None:
    """Create position numbers, which are in no file because they only count."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name != "position_ids":
                raise ModelLoadError(f"buffer {name} is in no file")
            counted = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
            module.register_buffer(name, counted, persistent=False)


def _scheduler_config(configs: Path, layout: Layout) -> dict[str, Any]:
    config = read_json(configs / "scheduler" / "scheduler_config.json")
    config["prediction_type"] = "v_prediction" if layout.is_v else "epsilon"
    if layout.is_zero_snr:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _has(header: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in header)


def _unsupported(header: Mapping[str, Any]) -> UnsupportedArchitecture:
    """The error for a file of another kind, which says what the file seems to be."""
    if any(".lora_" in name or "lora_down" in name or "lora_A" in name for name in header):
        found = "this one is a LoRA; give the base model that it was made for"
    elif _has(header, _XL_REFINER):
        found = "this one is an SDXL refiner, which only finishes another model's pictures"
    elif is_transformer(header):
        found = (
            "this one is a transformer, as FLUX, Stable Diffusion 3, Qwen-Image and Z-Image have: "
            "move it into the folder 'transformer' of the same model's diffusers folder, in place "
            "of the .safetensors files there, and give the diffusers folder, which has the other "
            "parts"
        )
    elif _has(header, _UNET) or any(name.startswith("down_blocks.") for name in header):
        found = "this one is a UNet without text encoder or VAE; give the whole model"
    else:
        found = "this one has other tensor names"
    return UnsupportedArchitecture(
        f"a single .safetensors file must be Stable Diffusion 1.x, 2.x or XL with text encoders "
        f"and VAE; {found}"
    )
