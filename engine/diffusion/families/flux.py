"""FLUX.1: schnell (few steps, no guidance), dev (guidance as an input), Kontext (edits a reference
image), and Fill (a denoiser with mask and masked image as inputs).

One sequence of text tokens and packed image tokens passes through the transformer; positions are
rotary, `(image, row, column)` each. Latents are packed, two by two cells to a token, only in here.

Papers: Labs et al. 2025, arXiv:2506.15742 (Kontext); rectified flow, arXiv:2403.03206.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from engine.contract.draw import DenoisingFacts, GuidanceKind, ImageTask
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.family import GENERAL_TASKS, FamilyFacts, Row
from engine.diffusion.families.flow_schedules import FlowSchedules
from engine.diffusion.families.flux_names import original_names
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantized import load_t5, load_transformer
from engine.diffusion.families.row_layouts import stack_timesteps
from engine.diffusion.families.transformer_family import TransformerFamily
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from engine.lora.images.layers import AdaptedLayers, text_encoders
from engine.weights.source import Checkpoint

_PATCH = 2
"""The latent cells of a token, on a side."""
_MAX_SHIFT = 1.15
_PROMPT_TOKENS = 512
_SCHNELL_PROMPT_TOKENS = 256
"""The lengths to which prompts are padded, as in the models' training."""
KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184),
    (944, 1104), (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752),
    (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip
"""The widths and heights of Kontext's training."""


class FluxFamily(TransformerFamily):
    """FLUX.1 in all variants (see the module).

    Args:
        scheduler_config: the model's own scheduler config.
        edits: whether the transformer was trained with reference images (Kontext).

    Raises:
        UnsupportedArchitecture: the transformer has input channels for something else.
    """

    def __init__(
        self,
        *,
        transformer: FluxTransformer2DModel,
        autoencoder: Autoencoder,
        clip: ClipPromptEncoder,
        t5: T5PromptEncoder,
        scheduler_config: Mapping[str, Any],
        edits: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(transformer, autoencoder, dtype=dtype, device=device)
        self._clip, self._t5 = clip, t5
        self.adapted = AdaptedLayers(
            {"transformer": [self._transformer]} | text_encoders([clip.model, t5.model]),
            device=device,
            aliases={"transformer": original_names(transformer.config).modules},
        )
        self._schedules = FlowSchedules(
            scheduler_config, max_shift=_MAX_SHIFT, spans_unit_interval=True
        )
        self._takes_guidance = bool(transformer.config.guidance_embeds)
        self._fills = _fills(transformer.config.in_channels, autoencoder)
        self.facts = _facts(autoencoder, self._schedules, self._takes_guidance, self._fills, edits)

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "FluxFamily":
        """Load a diffusers folder; its transformer may be a GGUF file.

        Quantisation includes the T5 encoder, which is nearly as large as the transformer.

        Raises:
            ModelLoadError: the checkpoint cannot be loaded.
        """
        folder = ComponentFolder(checkpoint.path, options)
        transformer = load_transformer(FluxTransformer2DModel, folder, checkpoint.path, options)
        guided = transformer.config.guidance_embeds
        clip = ClipPromptEncoder(
            folder.tokenizer("tokenizer"), folder.text_encoder("text_encoder"), final_norm=True
        )
        return cls(
            transformer=transformer,
            autoencoder=folder.autoencoder(),
            clip=clip,
            t5=load_t5(
                folder, "_2", options, length=_PROMPT_TOKENS if guided else _SCHNELL_PROMPT_TOKENS
            ),
            scheduler_config=folder.scheduler_config(),
            edits=folder.index.get("_class_name") == "FluxKontextPipeline",
            dtype=options.dtype,
            device=options.device,
        )

    def image_condition(
        self,
        task: ImageTask,
        image: torch.Tensor,
        mask: torch.Tensor | None,
        generator: torch.Generator,
        *,
        noise_level: int = 0,
    ) -> torch.Tensor | None:
        """For Fill the latents of the masked image, and the mask."""
        if not self._fills:
            return None
        if mask is None:
            raise InvalidParameter(
                "this model fills the area under a mask; send a mask", param="mask"
            )
        masked = self._autoencoder.encode(image * (1.0 - mask), generator)
        # The pixels of the mask that belong to a latent cell become its channels.
        cells = torch.nn.functional.pixel_unshuffle(mask, self._autoencoder.factor)
        return torch.cat([masked, cells.to(masked)], dim=1)

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image, shifted by its size if the config says so."""
        side = self._autoencoder.factor * _PATCH
        return self._schedules.create(name, num_steps, (width // side) * (height // side))

    def _encode(self, prompt: PromptText) -> PromptStates:
        """T5's states, padded to one length, and CLIP's pooled state."""
        text = self._t5.encode(prompt)
        return PromptStates(
            key=prompt,
            states=text.states,
            pooled=self._clip.encode(prompt).pooled,
            num_tokens=text.num_tokens,
            warnings=text.warnings,
        )

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        latents = torch.cat([row.latents for row in rows])
        height, width = latents.shape[-2:]
        tokens, ids = self._sequence(latents, rows)
        states = torch.cat([row.prompt.states for row in rows])
        pooled = torch.cat([_pooled(row) for row in rows])
        guidance = None
        if self._takes_guidance:
            scales = [row.guidance_scale for row in rows]
            guidance = torch.tensor(scales, dtype=torch.float32, device=self.device)
        with self.adapted.rows(row.adapters for row in rows):
            predictions = self._transformer(
                hidden_states=tokens.to(self._dtype),
                timestep=stack_timesteps(rows, self.device) / 1000,
                guidance=guidance,
                pooled_projections=pooled.to(self._dtype),
                encoder_hidden_states=states.to(self._dtype),
                txt_ids=torch.zeros((states.shape[1], 3), device=self.device),
                img_ids=ids.to(self.device),
                return_dict=False,
            )[0]
        num_tokens = (height // _PATCH) * (width // _PATCH)
        return unpack(predictions[:, :num_tokens].float(), height, width)

    def _sequence(
        self, latents: torch.Tensor, rows: Sequence[Row]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The image tokens `[R, T, D]` and their positions `[T, 3]`."""
        ids = position_ids(*latents.shape[-2:], image=0)
        if self._fills:
            beside = torch.cat([_image_latents(row) for row in rows])
            return pack(torch.cat([latents, beside.to(latents)], dim=1)), ids
        if not rows[0].references:
            return pack(latents), ids
        beside = torch.cat([row.references[0] for row in rows])
        tokens = torch.cat([pack(latents), pack(beside.to(latents))], dim=1)
        return tokens, torch.cat([ids, position_ids(*beside.shape[-2:], image=1)])


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Pack `[N, C, h, w]` to tokens `[N, h/2 * w/2, 4C]`, with a channel's four cells side by
    side."""
    return torch.nn.functional.pixel_unshuffle(latents, _PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack tokens to latents of this size: the inverse of `pack`."""
    size = (height // _PATCH, width // _PATCH)
    return torch.nn.functional.pixel_shuffle(
        torch.unflatten(tokens.transpose(1, 2), 2, size), _PATCH
    )


def position_ids(height: int, width: int, *, image: int) -> torch.Tensor:
    """The image, row and column of each token, `[h/2 * w/2, 3]`."""
    rows, columns = torch.arange(height // _PATCH), torch.arange(width // _PATCH)
    grid = torch.cartesian_prod(torch.tensor([image]), rows, columns)
    return grid.float()


def _pooled(row: Row) -> torch.Tensor:
    assert row.prompt.pooled is not None
    return row.prompt.pooled


def _image_latents(row: Row) -> torch.Tensor:
    assert row.image_latents is not None
    return row.image_latents


def _fills(in_channels: int, autoencoder: Autoencoder) -> bool:
    """Whether the transformer takes a mask and a masked image beside the latents."""
    cell = _PATCH * _PATCH
    plain = cell * autoencoder.channels
    fill = 2 * plain + cell * autoencoder.factor**2
    if in_channels not in (plain, fill):
        raise UnsupportedArchitecture(
            f"FLUX transformers with {plain} (text to image, Kontext) or {fill} (Fill) input "
            f"channels are supported; this one has {in_channels}, as control models have"
        )
    return bool(in_channels == fill)


def _facts(
    autoencoder: Autoencoder,
    schedules: FlowSchedules,
    takes_guidance: bool,
    fills: bool,
    edits: bool,
) -> FamilyFacts:
    """The facts, with the defaults of the model cards."""
    steps, scale = (28, 3.5) if takes_guidance else (4, 1.0)
    tasks: tuple[ImageTask, ...] = GENERAL_TASKS
    references = None
    if fills:
        tasks, steps, scale = (ImageTask.INPAINT,), 50, 30.0
    elif edits:
        tasks, scale = (*GENERAL_TASKS, ImageTask.EDIT), 2.5
        references = ReferenceFacts(
            max_images=1, size_multiple=autoencoder.factor * _PATCH, sizes=KONTEXT_SIZES
        )
    return FamilyFacts(
        architecture="flux",
        tasks=tasks,
        denoising=DenoisingFacts(
            guidance=GuidanceKind.DISTILLED if takes_guidance else GuidanceKind.NONE,
            schedulers=schedules.names,
            default_steps=steps,
            default_guidance_scale=scale,
        ),
        latent_channels=autoencoder.channels,
        vae_factor=autoencoder.factor,
        size_multiple=autoencoder.factor * _PATCH,
        default_width=1024,
        default_height=1024,
        min_side=autoencoder.factor * _PATCH,
        max_pixels=2048 * 2048,
        references=references,
    )
