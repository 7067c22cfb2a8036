"""Stable Diffusion 1 and 2, with one CLIP text encoder, a UNet and a VAE.

They predict noise or v, as the noise schedule's config says. Fine-tunes for inpainting and for
editing by instruction are included (`unet_tasks`). Stable Diffusion XL builds on this class.

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

from engine.contract.draw import DenoisingFacts, GuidanceKind, ImageTask
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
from engine.lora.images.layers import AdaptedLayers, text_encoders
from engine.quantization.method_module import MethodModule
from engine.weights.source import Checkpoint

_Stacked = tuple[torch.Tensor, torch.Tensor | None]

_CHEAP_DECODER = 2_000_000
"""The most weights of a decoder that counts as cheap; Stable Diffusion's has 50 million."""


class StableDiffusionFamily:
    """The weights of one model (see the module and `family.Family`).

    Args:
        unets: `unet` and, if the model has them, the UNets of `unet_tasks.EXTRA`; their dtype is
            the model's.
        encoders: the prompt encoders; one here, two for XL.
        scheduler_config: the config of the model's own noise schedule, with `_class_name`.
        defaults: default `num_inference_steps`, `guidance_scale` and `size` (pixels, on a side) of
            requests.
        vocabulary: all words that the model knows, in lower case; None: any word may have a
            meaning.
        does_one_edit: whether an instruction may ask for only one edit.

    Raises:
        UnsupportedArchitecture: the parts do not fit each other, or do something else.
    """

    architecture: ClassVar[str] = "stable-diffusion"
    guidance_scale: ClassVar[float] = 7.5
    num_steps: ClassVar[int] = 30
    area_factor: ClassVar[int] = 4
    """The largest picture, as a multiple of the area on which the model was trained."""
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
        # Read only once, because the property walks through all modules.
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
        """Load a diffusers folder or a single file.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        if checkpoint.layout == "single_file":
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
        """The name of the UNet for each task that the model offers.

        Raises:
            UnsupportedArchitecture: a UNet is of another kind.
        """
        return unets_by_task(unets)

    @classmethod
    def prompt_encoder(cls, tokenizer: Any, text_encoder: Any) -> ClipPromptEncoder:
        """An encoder that reads the text encoder's layers as this family does."""
        return ClipPromptEncoder(tokenizer, text_encoder, final_norm=True)

    @classmethod
    def options_of(cls, folder: ComponentFolder) -> dict[str, Any]:
        """Constructor arguments for which a folder has values."""
        return {}

    @classmethod
    def autoencoder_of(cls, folder: ComponentFolder) -> Autoencoder:
        """The VAE of a folder."""
        return folder.autoencoder()

    @classmethod
    def corrected(cls, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
        """Correct old configs like diffusers' pipelines: latents are not clipped, and steps start
        at 1.

        Without this, old checkpoints draw other pictures than they are known for.
        """
        changes: dict[str, Any] = {}
        if scheduler_config.get("steps_offset", 1) != 1:
            changes["steps_offset"] = 1
        if scheduler_config.get("clip_sample") is True:
            changes["clip_sample"] = False
        return {**scheduler_config, **changes}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[PromptText]) -> list[PromptStates]:
        """The states of each prompt, encoded one by one."""
        found = []
        for prompt in prompts:
            with self.adapted.rows([prompt.adapters]):
                found.append(self._with_warning(prompt, self._encode(prompt)))
        return found

    def encode_image(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Encode pixels `[1, 3, H, W]` in [-1, 1] as scaled latents `[1, 4, H/f, W/f]`, fp32."""
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
        """The input of the task's UNet beside the latents.

        For editing `[1, 4, h, w]`, the posterior's mode, unscaled; for inpainting UNets `[1, 5, h,
        w]`, the mask and the masked image; otherwise None.

        Raises:
            InvalidParameter: an inpainting UNet gets no mask.
        """
        unet = self._unets[self._by_task[task]]
        if takes_image(unet):
            return self._autoencoder.encode(image, None, scaled=False)
        if not takes_mask(unet):
            return None
        if mask is None:
            raise InvalidParameter(
                "this model only redraws the area under a mask; send a mask", param="mask"
            )
        masked = self._autoencoder.encode(image * (mask < 0.5), generator)
        # Max-pooled, so that a thin mask does not vanish between the cells.
        cells = F.max_pool2d(mask.float(), self._autoencoder.factor)
        return torch.cat([cells.to(masked.device), masked], dim=1)

    def denoiser_key(self, task: ImageTask) -> Hashable:
        """The name of the UNet.

        Raises:
            InvalidParameter: the model does not do this task.
        """
        if task not in self._by_task:
            raise InvalidParameter(
                f"this model does not support {task.value}; it supports "
                f"{', '.join(known.value for known in self._by_task)}",
                param="task",
            )
        return self._by_task[task]

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image; its size does not matter.

        Raises:
            InvalidParameter: there is no such name.
        """
        return self._schedules.create(name, num_steps)

    def denoise(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        """Run one UNet call, or one per prompt length if rows must not affect each other. See
        `Family`."""
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
        # A copy made outside inference mode is a plain tensor, which schedules may write to.
        plain: torch.Tensor = prediction.to(
            torch.float32, memory_format=torch.contiguous_format, copy=True
        )
        return plain

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents `[N, 4, h, w]` to pixels `[N, 3, H, W]`, fp32, clipped to [-1,
        1]."""
        return self._autoencoder.decode(latents)

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """A picture of unfinished latents, rough and small unless decoding is cheap."""
        if self._autoencoder.num_decoder_weights < _CHEAP_DECODER:
            return self._autoencoder.decode(latents)
        return self._autoencoder.preview(latents)

    def _adapted(self) -> AdaptedLayers:
        # Adapters are made for the first UNet; the others are fine-tunes of it.
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
        """Add a warning about words that a model with a closed vocabulary does not know."""
        unknown = [] if self._vocabulary is None else unknown_words(prompt, self._vocabulary)
        return replace(states, warnings=(unknown_words_warning(unknown),)) if unknown else states

    def _states_of(self, composition: Hashable, rows: Sequence[Row]) -> _Stacked:
        """The states and mask of a call; the last ones are kept, since steps repeat them."""
        if self._stacked is None or self._stacked[0] != composition:
            states, mask = stack_states([row.prompt.states for row in rows])
            on_device = None if mask is None else mask.to(self.device)
            placed = states.to(device=self.device, dtype=self._dtype)
            self._stacked = composition, (placed, on_device)
        return self._stacked[1]

    def _conditions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The UNet's inputs besides latents, time and prompt."""
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
                f"the VAE has {channels} latent channels and the UNet "
                f"{self._unets[BASE].config.out_channels}; fetch both from the same model"
            )
        probe = self._encode(PromptText(text="")).states.shape[-1]
        for name, unet in self._unets.items():
            if unet.config.cross_attention_dim != probe:
                raise UnsupportedArchitecture(
                    f"{name} takes prompt states of {unet.config.cross_attention_dim} channels and "
                    f"the text encoder makes {probe}; fetch both from the same model"
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
    """Stack prompts of different lengths as one batch.

    Returns:
        The states `[R, L, D]`, with zeros after the end of each, and a mask `[R, L]`, True for
        states; no mask if all have one length, since attention is faster without.
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
    """The length of a row's prompt; rows with equal lengths need no mask."""
    return row.prompt.states.shape[1]


def _keeps_rows_apart(unet: UNet2DConditionModel) -> bool:
    """Whether rows do not affect each other in any layer, as they do in quantised layers and in
    diffusers' own attention."""
    return not any(
        isinstance(module, MethodModule)
        or isinstance(getattr(module, "processor", None), AttnProcessor2_0)
        for module in unet.modules()
    )


def _side(sample_size: int | Sequence[int] | None) -> int:
    """The latent cells on a side; configs have one number, height and width, or none."""
    if sample_size is None:
        return 64
    return sample_size if isinstance(sample_size, int) else max(sample_size)


def _placed(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """Move a UNet to the device, with channels last, which is fastest for convolutions."""
    unet.requires_grad_(False)
    unet.to(device=device, memory_format=torch.channels_last)
    fuse_layers(unet)
    return unet.eval()
