"""Tiny random Stable Diffusion components and the diffusers pipelines over them, offline."""

import copy
import random
import string
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily
from engine.diffusion.families.stable_diffusion_xl import StableDiffusionXLFamily

CPU = torch.device("cpu")
FACTOR = 2
"""The pixels per latent cell of the VAE."""


@dataclass
class Parts:
    """The components under the names that pipelines take."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    extra_unets: dict[str, UNet2DConditionModel] = field(default_factory=dict)

    @property
    def is_xl(self) -> bool:
        return self.text_encoder_2 is not None

    def family(self, **options: Any) -> StableDiffusionFamily:
        """Make our family over copies of the same weights."""
        vae = copy.deepcopy(self.vae)
        pairs = [(self.tokenizer, self.text_encoder)]
        if self.is_xl:
            pairs.append((self.tokenizer_2, self.text_encoder_2))
        family = StableDiffusionXLFamily if self.is_xl else StableDiffusionFamily
        return family(
            unets={
                name: copy.deepcopy(unet)
                for name, unet in ({"unet": self.unet} | self.extra_unets).items()
            },
            autoencoder=Autoencoder(vae, dtype=vae.dtype, device=CPU),
            encoders=[family.prompt_encoder(*pair) for pair in pairs],
            scheduler_config={
                **self.scheduler.config,
                "_class_name": type(self.scheduler).__name__,
            },
            device=CPU,
            **options,
        )

    def pipeline(self, pipeline_class: type, **options: Any) -> Any:
        """Make the diffusers pipeline to compare with, without progress output."""
        parts = {
            "unet": self.unet,
            "vae": self.vae,
            "scheduler": copy.deepcopy(self.scheduler),
            "tokenizer": self.tokenizer,
            "text_encoder": self.text_encoder,
        }
        if self.is_xl:
            parts |= {"tokenizer_2": self.tokenizer_2, "text_encoder_2": self.text_encoder_2}
            options.setdefault("add_watermarker", False)
        else:
            parts |= {"safety_checker": None, "feature_extractor": None}
            options.setdefault("requires_safety_checker", False)
        # Clip skip of diffusers 0.42 asks for the wrapper that transformers 5 did away with.
        self.text_encoder.__dict__.setdefault("text_model", self.text_encoder)
        pipeline = pipeline_class(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def tiny_parts(
    seed: int = 0,
    *,
    in_channels: int = 4,
    prediction_type: str = "epsilon",
    xl: bool = False,
    scheduler: dict[str, Any] | None = None,
) -> Parts:
    """Make components with random weights, larger than at initialisation, so that prompts and time
    matter."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    parts = Parts(
        unet=tiny_unet(in_channels, xl=xl),
        vae=tiny_vae(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
            **(scheduler or {}),
        ),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(clip_config(tokenizer, 16)).eval(),
    )
    if xl:
        parts.tokenizer_2 = clip_tokenizer(pad_token="!")
        parts.text_encoder_2 = CLIPTextModelWithProjection(clip_config(parts.tokenizer_2, 8)).eval()
    return parts


def tiny_unet(
    in_channels: int = 4, *, xl: bool = False, **conditioning: Any
) -> UNet2DConditionModel:
    if xl:
        conditioning |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 8 + 6 * 4,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        }
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24 if xl else 16,
        attention_head_dim=2,
        norm_num_groups=4,
        **conditioning,
    )
    return unet.eval().requires_grad_(False)


def tiny_vae(*widths: int, groups: int = 4, **config: Any) -> AutoencoderKL:
    """Make an autoencoder with blocks of these widths."""
    widths = widths or (8, 16)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        norm_num_groups=groups,
        sample_size=32,
        **config,
    )
    return vae.eval().requires_grad_(False)


def clip_tokenizer(*, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Make a tokenizer of characters, which spells every word."""
    letters = string.ascii_lowercase + string.digits + ",.'!"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, pad_token=pad_token)


def clip_config(tokenizer: CLIPTokenizer, width: int, **changes: Any) -> CLIPTextConfig:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 24,
        "projection_dim": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Larger than CLIP's, or prompts would hardly differ.
        "initializer_range": 0.1,
        "initializer_factor": 2.0,
    }
    return CLIPTextConfig(**settings | changes)


_PARTS: dict[tuple[Any, ...], Parts] = {}


def parts_of(prediction_type: str = "epsilon", in_channels: int = 4, *, xl: bool = False) -> Parts:
    """Give the parts of a model, the same ones for the same arguments."""
    key = (prediction_type, in_channels, xl)
    if key not in _PARTS:
        torch.set_num_threads(1)
        _PARTS[key] = tiny_parts(
            len(_PARTS), prediction_type=prediction_type, in_channels=in_channels, xl=xl
        )
    return _PARTS[key]


def fresh_seed() -> int:
    return random.randrange(2**31)


def noise(seed: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn((1, 4, height, width), generator=torch.Generator().manual_seed(seed))


def from_noise(job: Any) -> dict[str, Any]:
    """Give the arguments of a pipeline that starts from a job's latents."""
    height, width = (FACTOR * side for side in job.latents.shape[2:])
    return {"latents": job.latents.clone(), "height": height, "width": width}


def use(pipeline: Any, family: Any, name: str) -> None:
    """Give the oracle the scheduler that the name stands for."""
    schedule = family.new_noise_schedule(name, 2, 16, 16)
    pipeline.scheduler = type(schedule._scheduler).from_config(schedule._scheduler.config)
