"""Decides which UNet of a model serves which task, by the number of its input channels:

    4  only latents: text and image to image, inpainting by blending, restoring
    8  latents and the image to edit (InstructPix2Pix, Brooks et al. 2023, arXiv:2211.09800)
    9  latents, mask and masked image: inpainting

The base UNet is `unet`; a folder may add `unet_edit` and `unet_inpaint` to its model_index.json.
"""

from collections.abc import Mapping

from diffusers import UNet2DConditionModel

from engine.contract.draw import ImageTask
from engine.diffusion.families.family import GENERAL_TASKS
from engine.errors import UnsupportedArchitecture

BASE = "unet"
EXTRA = {"unet_edit": ImageTask.EDIT, "unet_inpaint": ImageTask.INPAINT}

_EDIT_CHANNELS = 8
_INPAINT_CHANNELS = 9
_TASKS = {
    4: GENERAL_TASKS,
    _EDIT_CHANNELS: (ImageTask.EDIT,),
    _INPAINT_CHANNELS: (ImageTask.INPAINT,),
}


def unets_by_task(unets: Mapping[str, UNet2DConditionModel]) -> dict[ImageTask, str]:
    """The name of the UNet for each task that the model offers.

    Raises:
        UnsupportedArchitecture: a UNet is of another kind.
    """
    by_task = dict.fromkeys(_tasks_of(BASE, unets[BASE]), BASE)
    for name, task in EXTRA.items():
        if name not in unets:
            continue
        if task not in _tasks_of(name, unets[name]):
            raise UnsupportedArchitecture(
                f"{name} has {unets[name].config.in_channels} input channels; it must have "
                f"{_EDIT_CHANNELS if task is ImageTask.EDIT else _INPAINT_CHANNELS}"
            )
        by_task[task] = name
    return {task: by_task[task] for task in ImageTask if task in by_task}


def takes_mask(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet is for inpainting."""
    return int(unet.config.in_channels) == _INPAINT_CHANNELS


def takes_image(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet is for editing."""
    return int(unet.config.in_channels) == _EDIT_CHANNELS


def _tasks_of(name: str, unet: UNet2DConditionModel) -> tuple[ImageTask, ...]:
    config = unet.config
    tasks = _TASKS.get(int(config.in_channels))
    if tasks is None or int(config.out_channels) != 4:
        raise UnsupportedArchitecture(
            f"{name} maps {config.in_channels} to {config.out_channels} channels; only 4, 8 or 9 "
            f"to 4 are supported"
        )
    if config.class_embed_type or config.num_class_embeds or config.time_cond_proj_dim:
        raise UnsupportedArchitecture(
            f"{name} is conditioned on more than text and time, like a latent consistency model; "
            f"use its plain base model or its LoRA"
        )
    return tasks
