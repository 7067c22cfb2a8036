"""Chooses the task of an image request: drawing, redrawing, following an instruction."""

from engine.contract.draw import ImageModelInfo, ImageTask, Outpaint, combines_images
from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.image_inputs import OutpaintFields
from server.protocol.images import (
    MAX_INPUT_IMAGES,
    ImageEditRequest,
    ImageFields,
    ImageInputFields,
    ImageVariationRequest,
)


def choose_task(body: ImageFields, info: ImageModelInfo) -> ImageTask:
    """The task for a request, with or without input images.

    Raises:
        InvalidParameter: the fields contradict the requested task.
        UnsupportedFeature: the model cannot do it.
    """
    if isinstance(body, ImageEditRequest):
        task = _edit_task(body, info)
        param = "task" if body.task else "mask" if task is ImageTask.INPAINT else "image"
    elif isinstance(body, ImageVariationRequest):
        task, param = ImageTask.IMAGE_TO_IMAGE, "image"
    else:
        task, param = ImageTask.TEXT_TO_IMAGE, "model"
    if task not in info.tasks:
        does = ", ".join(known.value for known in info.tasks) or "other tasks"
        raise UnsupportedFeature(
            f"{info.model} does not support {task.value}; it supports {does}; choose one of "
            "these, or another model",
            param=param,
        )
    if isinstance(body, ImageInputFields) and len(body.images) > 1:
        if combines_images(task, info.references):
            _check_combined(len(body.images), info)
        else:
            _check_several(body, len(body.images))
    return task


def _check_combined(num_images: int, info: ImageModelInfo) -> None:
    assert info.references is not None
    most = info.references.max_images
    if num_images > most:
        raise InvalidParameter(
            f"{num_images} images were sent; {info.model} combines at most {most} in an edit; send "
            "fewer",
            param="image",
        )


def _check_several(body: ImageInputFields, num_images: int) -> None:
    if not isinstance(body, ImageEditRequest):
        raise InvalidParameter(
            f"{num_images} images were sent; a variation takes one; send one", param="image"
        )
    if body.mask is not None:
        raise InvalidParameter(
            f"{num_images} images were sent with a mask, which applies to one image; send one "
            "image, or leave the mask out",
            param="mask",
        )
    num_results = num_images * (body.n or 1)
    if num_results > MAX_INPUT_IMAGES:
        raise InvalidParameter(
            f"{num_images} images times n {body.n or 1} make {num_results} results; the limit is "
            f"{MAX_INPUT_IMAGES} per request; send fewer images, or lower n",
            param="n",
        )


def _edit_task(body: ImageEditRequest, info: ImageModelInfo) -> ImageTask:
    paints = body.mask is not None or outpaint_of(body.outpaint) is not None
    if body.task is None:
        if paints:
            return ImageTask.INPAINT
        if body.strength is not None or ImageTask.EDIT not in info.tasks:
            return ImageTask.IMAGE_TO_IMAGE
        return ImageTask.EDIT
    if body.task == "inpaint" and not paints:
        raise InvalidParameter(
            "task inpaint needs a mask or outpaint; send one of them", param="task"
        )
    if body.task != "inpaint" and paints:
        raise InvalidParameter(
            f"mask and outpaint do not work with task {body.task}; leave them out, or leave out "
            "task",
            param="task",
        )
    return ImageTask(body.task)


def outpaint_of(fields: OutpaintFields | None) -> Outpaint | None:
    """How far the canvas grows on each side; None if it does not."""
    if fields is None:
        return None
    outpaint = Outpaint(
        left=fields.left or 0,
        right=fields.right or 0,
        top=fields.top or 0,
        bottom=fields.bottom or 0,
    )
    return None if outpaint == Outpaint() else outpaint
