"""Stable Diffusion 1 and 2: one CLIP text encoder, a UNet, a VAE.

Predicts noise or v, as the noise schedule's config says. Also their fine-tunes for inpainting and
for editing by instruction, see `unet_tasks`. Stable Diffusion XL builds on this class.

Paper: Rombach et al. 2022, arXiv:2112.10752.
"""

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from engine.diffusion.families import single_file
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.cross_attention import CrossAttentionCache
from engine.diffusion.families.family import FamilyFacts, Row
from engine.diffusion.families.fused_layers import fuse_layers
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantized import quantize
from engine.diffusion.families.row_layouts import (
    denoise_by_layout,
    denoise_each,
    is_exact,
    stack_timesteps,
)
from engine.diffusion.families.unet_names import original_names
from engine.diffusion.families.unet_tasks import (
    BASE,
    EXTRA,
    takes_image,
    takes_mask,
    unets_by_task,
)
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, NoiseSchedule, NoiseSchedules
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.diffusion.prompt.vocabulary import unknown_words, unknown_words_warning
from engine.errors import InvalidParameter, UnsupportedArchitecture
from engine.image_types import DenoisingFacts, GuidanceKind, ImageTask
from engine.lora.images.layers import AdaptedLayers, text_encoders
from engine.quantization.method_module import MethodModule
from engine.weights.source import Checkpoint

_Stacked = tuple[torch.Tensor, torch.Tensor | None]

_CHEAP_DECODER = 2_000_000
"""Weights; Stable Diffusion's own has 50 million."""


class StableDiffusionFamily:
    """One model's weights, see the module and `family.Family`.

    Args:
        unets: `unet` and, where the model has them, those of `unet_tasks.EXTRA`; their dtype is the
            model's.
        encoders: of the prompt; one here, two for XL.
        scheduler_config: of the model's own noise schedule, with `_class_name`.
        defaults: `num_inference_steps`, `guidance_scale`, `size` (pixels, on a side) of requests
            that do not say.
        vocabulary: all words that the model knows, in lower case; None: any word may mean something
            to it.
        does_one_edit: instructions may ask for one edit only.

    Raises:
        UnsupportedArchitecture: the parts do not fit each other, or do something else.
    """

    architecture: ClassVar[str] = "stable-diffusion"
    guidance_scale: ClassVar[float] = 7.5
    num_steps: ClassVar[int] = 30
    area_factor: ClassVar[int] = 4
    """Largest picture, in areas of the one that the model was trained on."""
    num_encoders: ClassVar[int] = 1

    def __init__(
        self,
        *,
        unets: Mapping[str, UNet2DConditionModel],
        autoencoder: Autoencoder,
        encoders: Sequence[ClipPromptEncoder],
        scheduler_config: Mapping[str, Any],
        device: torch.device,
        defaults: Mapping[str, Any] | None = None,
        vocabulary: Set[str] | None = None,
        does_one_edit: bool = False,
    ) -> None:
        self.device = device
        self._does_one_edit = does_one_edit
        self._vocabulary = vocabulary
        self._by_task = self.unets_by_task(unets)
        self._unets = {name: _placed(unet, device) for name, unet in unets.items()}
        self._caches = {name: CrossAttentionCache(unet) for name, unet in self._unets.items()}
        self._keeps_apart = {name: _keeps_rows_apart(unet) for name, unet in self._unets.items()}
        # Asked for here: the property walks through all modules.
        self._dtype = self._unets[BASE].dtype
        self._stacked: tuple[Hashable, _Stacked] | None = None
        self._autoencoder = autoencoder
        self._encoders = tuple(encoders)
        self.adapted = self._adapted()
        self._schedules = NoiseSchedules(self.corrected(scheduler_config), DIFFUSION_SCHEDULES)
        self.facts = self._facts(dict(defaults or {}))
        self._check_parts()

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "StableDiffusionFamily":
        """From a diffusers folder or a single file.

        Raises:
            ModelLoadError: one of its kinds.
        """
        if checkpoint.kind == "single_file":
            return cls._load_single_file(checkpoint, options)
        folder = ComponentFolder(checkpoint.path, options)
        unets = {
            name: folder.load(name, UNet2DConditionModel)
            for name in (BASE, *EXTRA)
            if name == BASE or folder.has(name)
        }
        for unet in unets.values():
            quantize(unet, options.quantization, dtype=options.dtype, device=options.device)
        suffixes = ("", "_2")[: cls.num_encoders]
        encoders = [
            cls.prompt_encoder(
                folder.tokenizer(f"tokenizer{suffix}"), folder.text_encoder(f"text_encoder{suffix}")
            )
            for suffix in suffixes
        ]
        return cls(
            unets=unets,
            autoencoder=cls.autoencoder_of(folder),
            encoders=encoders,
            scheduler_config=folder.scheduler_config(),
            device=options.device,
            defaults=folder.defaults(),
            vocabulary=folder.vocabulary(),
            does_one_edit=folder.does_one_edit(),
            **cls.options_of(folder),
        )

    @classmethod
    def unets_by_task(cls, unets: Mapping[str, UNet2DConditionModel]) -> dict[ImageTask, str]:
        """Name of the UNet for each task that the model offers.

        Raises:
            UnsupportedArchitecture: a UNet of some other kind.
        """
        return unets_by_task(unets)

    @classmethod
    def prompt_encoder(cls, tokenizer: Any, text_encoder: Any) -> ClipPromptEncoder:
        """How this family reads a text encoder's layers."""
        return ClipPromptEncoder(tokenizer, text_encoder, final_norm=True)

    @classmethod
    def options_of(cls, folder: ComponentFolder) -> dict[str, Any]:
        """Arguments of the class that a folder has values for."""
        return {}

    @classmethod
    def autoencoder_of(cls, folder: ComponentFolder) -> Autoencoder:
        """Its VAE."""
        return folder.autoencoder()

    @classmethod
    def corrected(cls, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
        """As diffusers' pipelines correct old configs: latents are not clipped, steps start at 1.

        Without it, what old checkpoints draw differs from what everyone knows them for.
        """
        changes: dict[str, Any] = {}
        if scheduler_config.get("steps_offset", 1) != 1:
            changes["steps_offset"] = 1
        if scheduler_config.get("clip_sample") is True:
            changes["clip_sample"] = False
        return {**scheduler_config, **changes}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[PromptText]) -> list[PromptStates]:
        """States of each prompt, encoded one by one."""
        found = []
        for prompt in prompts:
            with self.adapted.rows([prompt.adapters]):
                found.append(self._with_warning(prompt, self._encode(prompt)))
        return found

    def encode_image(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Pixels `[1, 3, H, W]` in [-1, 1] to scaled latents `[1, 4, H/f, W/f]`, fp32."""
        return self._autoencoder.encode(image, generator)

    def image_condition(
        self,
        task: ImageTask,
        image: torch.Tensor,
        mask: torch.Tensor | None,
        generator: torch.Generator,
        *,
        noise_level: int = 0,
    ) -> torch.Tensor | None:
        """What the task's UNet takes beside the latents.

        `[1, 4, h, w]`, the mode of the posterior, unscaled, for editing; `[1, 5, h, w]`, mask and
        masked image, for inpainting UNets; else None.

        Raises:
            InvalidParameter: an inpainting UNet and no mask.
        """
        unet = self._unets[self._by_task[task]]
        if takes_image(unet):
            return self._autoencoder.encode(image, None, scaled=False)
        if not takes_mask(unet):
            return None
        if mask is None:
            raise InvalidParameter("this model only redraws under a mask; give one", param="mask")
        masked = self._autoencoder.encode(image * (mask < 0.5), generator)
        # Max-pooled: a thin mask must not vanish between the cells.
        cells = F.max_pool2d(mask.float(), self._autoencoder.factor)
        return torch.cat([cells.to(masked.device), masked], dim=1)

    def denoiser_key(self, task: ImageTask) -> Hashable:
        """Name of the UNet.

        Raises:
            InvalidParameter: the model does not do this task.
        """
        if task not in self._by_task:
            raise InvalidParameter(
                f"this model does not do {task.value}; it does "
                f"{', '.join(known.value for known in self._by_task)}",
                param="task",
            )
        return self._by_task[task]

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A schedule of its own for one image; the size plays no part.

        Raises:
            InvalidParameter: no such name.
        """
        return self._schedules.create(name, num_steps)

    def denoise(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        """One UNet call; where rows must not meet, one per length of prompts. See `Family`."""
        forward = partial(self._forward, key)
        if not is_exact(self.device, self._dtype):
            return forward(rows)
        if self._keeps_apart[str(key)]:
            return denoise_by_layout(rows, prompt_length, forward)
        return denoise_each(rows, forward)

    def _forward(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        unet, cache = self._unets[str(key)], self._caches[str(key)]
        composition = tuple((row.prompt.key, row.adapters) for row in rows)
        with torch.inference_mode(), self.adapted.rows(row.adapters for row in rows):
            states, mask = self._states_of(composition, rows)
            cache.select(composition)
            prediction = unet(
                self._stack_latents(rows).to(dtype=self._dtype, memory_format=torch.channels_last),
                stack_timesteps(rows, self.device),
                states,
                encoder_attention_mask=mask,
                return_dict=False,
                **self._conditions(rows),
            )[0]
        # A copy made out here is a plain tensor, which schedules may write to.
        plain: torch.Tensor = prediction.to(
            torch.float32, memory_format=torch.contiguous_format, copy=True
        )
        return plain

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents `[N, 4, h, w]` to pixels `[N, 3, H, W]`, fp32, clipped to [-1, 1]."""
        return self._autoencoder.decode(latents)

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """A picture of unfinished latents, rough and small unless decoding is cheap."""
        if self._autoencoder.num_decoder_weights < _CHEAP_DECODER:
            return self._autoencoder.decode(latents)
        return self._autoencoder.preview(latents)

    def _adapted(self) -> AdaptedLayers:
        # The first is the one that adapters are made for; the others are fine-tunes of it.
        unets = [self._unets[BASE], *(u for name, u in self._unets.items() if name != BASE)]
        paths = [path for path, _ in unets[0].named_modules()]
        return AdaptedLayers(
            {BASE: unets} | text_encoders(encoder.model for encoder in self._encoders),
            device=self.device,
            aliases={BASE: original_names(paths)},
        )

    def _encode(self, prompt: PromptText) -> PromptStates:
        encoded = self._encoders[0].encode(prompt)
        return PromptStates(key=prompt, states=encoded.states, num_tokens=encoded.num_tokens)

    def _with_warning(self, prompt: PromptText, states: PromptStates) -> PromptStates:
        """Names the words that a model with a closed vocabulary does not know."""
        unknown = [] if self._vocabulary is None else unknown_words(prompt, self._vocabulary)
        return replace(states, warnings=(unknown_words_warning(unknown),)) if unknown else states

    def _states_of(self, composition: Hashable, rows: Sequence[Row]) -> _Stacked:
        """States and mask of a call; those of the last one are kept, since steps repeat them."""
        if self._stacked is None or self._stacked[0] != composition:
            states, mask = stack_states([row.prompt.states for row in rows])
            on_device = None if mask is None else mask.to(self.device)
            placed = states.to(device=self.device, dtype=self._dtype)
            self._stacked = composition, (placed, on_device)
        return self._stacked[1]

    def _conditions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What the UNet is told beside latents, time and prompt."""
        return {}

    def _stack_latents(self, rows: Sequence[Row]) -> torch.Tensor:
        latents = torch.cat([row.latents for row in rows])
        beside = [row.image_latents for row in rows if row.image_latents is not None]
        return torch.cat([latents, torch.cat(beside)], dim=1) if beside else latents

    def _facts(self, defaults: dict[str, Any]) -> FamilyFacts:
        unet, autoencoder = self._unets[BASE], self._autoencoder
        trained = _side(unet.config.sample_size) * autoencoder.factor
        size = int(defaults.get("size", trained))
        return FamilyFacts(
            architecture=self.architecture,
            tasks=tuple(self._by_task),
            denoising=DenoisingFacts(
                guidance=GuidanceKind.CLASSIFIER_FREE,
                schedulers=self._schedules.names,
                default_steps=int(defaults.get("num_inference_steps", self.num_steps)),
                default_guidance_scale=float(defaults.get("guidance_scale", self.guidance_scale)),
                default_edit_guidance_scale=defaults.get("edit_guidance_scale"),
            ),
            latent_channels=autoencoder.channels,
            vae_factor=autoencoder.factor,
            size_multiple=autoencoder.factor,
            default_width=size,
            default_height=size,
            min_side=autoencoder.factor * 2**unet.num_upsamplers,
            max_pixels=self.area_factor * max(trained, size) ** 2,
            image_free_at_full_strength=tuple(
                task for task, name in self._by_task.items() if takes_mask(self._unets[name])
            ),
            does_one_edit=self._does_one_edit,
        )

    def _check_parts(self) -> None:
        channels = self._autoencoder.channels
        if channels != self._unets[BASE].config.out_channels:
            raise UnsupportedArchitecture(
                f"the VAE has {channels} latent channels, the UNet "
                f"{self._unets[BASE].config.out_channels}"
            )
        probe = self._encode(PromptText(text="")).states.shape[-1]
        for name, unet in self._unets.items():
            if unet.config.cross_attention_dim != probe:
                raise UnsupportedArchitecture(
                    f"{name} attends to states of {unet.config.cross_attention_dim} channels, the "
                    f"text encoder makes {probe}"
                )

    @classmethod
    def _load_single_file(
        cls, checkpoint: Checkpoint, options: LoadOptions
    ) -> "StableDiffusionFamily":
        parts = single_file.load(checkpoint.path, options)
        quantize(parts.unet, options.quantization, dtype=options.dtype, device=options.device)
        return cls(
            unets={BASE: parts.unet},
            autoencoder=parts.autoencoder,
            encoders=[cls.prompt_encoder(*pair) for pair in parts.encoders],
            scheduler_config=parts.scheduler_config,
            device=options.device,
        )


def stack_states(states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts of different lengths as one batch.

    Returns:
        `[R, L, D]`, zeros after the end of each, and a mask `[R, L]`, True where there is a state;
        None if all are of one length, since attention is faster without.
    """
    lengths = [state.shape[1] for state in states]
    longest = max(lengths)
    if min(lengths) == longest:
        return torch.cat(list(states)), None
    padded = [F.pad(state, (0, 0, 0, longest - state.shape[1])) for state in states]
    positions = torch.arange(longest, device=states[0].device)
    ends = torch.tensor(lengths, device=states[0].device)
    return torch.cat(padded), positions[None, :] < ends[:, None]


def prompt_length(row: Row) -> int:
    """Rows whose prompts have one length need no mask."""
    return row.prompt.states.shape[1]


def _keeps_rows_apart(unet: UNet2DConditionModel) -> bool:
    """Whether rows do not meet in any layer, as they do in quantised ones and where diffusers'
    own attention is left."""
    return not any(
        isinstance(module, MethodModule)
        or isinstance(getattr(module, "processor", None), AttnProcessor2_0)
        for module in unet.modules()
    )


def _side(sample_size: int | Sequence[int] | None) -> int:
    """Latent cells on a side: configs hold one number, or height and width, or none."""
    if sample_size is None:
        return 64
    return sample_size if isinstance(sample_size, int) else max(sample_size)


def _placed(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """Convolutions are fastest with channels last."""
    unet.requires_grad_(False)
    unet.to(device=device, memory_format=torch.channels_last)
    fuse_layers(unet)
    return unet.eval()
