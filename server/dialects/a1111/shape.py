"""Answers in A1111's form."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from engine.contract.draw import ImageModelInfo
from server.dialects.a1111.convert import (
    OWN_NAMES,
    eta_warnings,
    idle_warnings,
    strength_of,
)
from server.dialects.a1111.protocol import DrawingFields
from server.dialects.dialect import responses
from server.http.errors import ErrorFacts, renamed
from server.http.shape import Shape, encode
from server.images.exif import EXIF_COMMENT
from server.images.made_with import changed_since
from server.images.metadata import (
    PARAMETERS_CHUNK,
    hires_settings,
    parameters_text,
    read_hashes,
    read_parameters,
    short_hash,
)
from server.images.sampler_names import names_of
from server.protocol.image_answers import ImagesAnswer
from server.protocol.made_with import MadeWith
from server.protocol.upscaling import UpscaleAnswer

answers = partial(responses, failure={"error": "...", "detail": "...", "body": "", "errors": "..."})
"""FastAPI's `responses` for a route."""


def error_shape(facts: ErrorFacts) -> bytes:
    """A failure in A1111's form; clients read `detail`, or `errors`."""
    message = renamed(facts, OWN_NAMES).message
    return encode({"error": facts.code, "detail": message, "body": "", "errors": message})


class A1111Shape(Shape):
    """The form of one reply: `images`, `parameters` (those of the request) and `info` (JSON in a
    string)."""

    def __init__(self, body: DrawingFields) -> None:
        self._body = body
        # The pictures would stay in memory as long as the request.
        self._parameters = body.model_dump(exclude={"init_images", "mask"})

    def whole(self, answer: Any) -> bytes:
        images = [image.b64_json for image in answer.data]
        return encode(
            {
                "images": [] if self._body.send_images is False else images,
                "parameters": self._parameters,
                "info": json.dumps(self._info(answer)),
            }
        )

    def _info(self, answer: ImagesAnswer) -> dict[str, Any]:
        prompt, negative = self._body.prompt or "", self._body.negative_prompt or ""
        seeds = [image.seed for image in answer.data]
        width, height = map(int, _first_size(answer).split("x"))
        return {
            "prompt": prompt,
            "all_prompts": [prompt] * len(seeds),
            "negative_prompt": negative,
            "all_negative_prompts": [negative] * len(seeds),
            "seed": answer.seed,
            "all_seeds": seeds,
            "subseed": -1,
            "all_subseeds": [-1] * len(seeds),
            "subseed_strength": 0,
            "width": width,
            "height": height,
            "sampler_name": " ".join(names_of(answer.scheduler)).strip(),
            "cfg_scale": answer.guidance_scale,
            "steps": answer.num_inference_steps,
            "batch_size": len(seeds),
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": answer.model,
            "sd_model_hash": short_hash(answer.made_with.get("model", "")) or None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": strength_of(self._body),
            "extra_generation_params": (
                hires_settings(self._metadata(answer)) if answer.hires is not None else {}
            ),
            "index_of_first_image": 0,
            "infotexts": [self._infotext(answer, seed) for seed in seeds],
            "styles": [],
            "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
            "is_using_inpainting_conditioning": False,
            "warnings": [
                *answer.warnings,
                *eta_warnings(self._body.eta, answer.scheduler),
                *idle_warnings(self._body),
            ],
        }

    def _infotext(self, answer: ImagesAnswer, seed: int) -> str:
        return parameters_text(self._metadata(answer) | {"seed": seed})

    def _metadata(self, answer: ImagesAnswer) -> dict[str, Any]:
        return {
            "prompt": self._body.prompt or "",
            "negative_prompt": self._body.negative_prompt,
            "num_inference_steps": answer.num_inference_steps,
            "scheduler": answer.scheduler,
            "guidance_scale": answer.guidance_scale,
            "size": _first_size(answer),
            "model": answer.model,
            "made_with": answer.made_with,
            "strength": strength_of(self._body),
            "hires": None if answer.hires is None else asdict(answer.hires),
        }


def _first_size(answer: ImagesAnswer) -> str:
    """The size at which the picture was drawn, before a second pass enlarged it."""
    return answer.size if answer.hires is None else answer.hires.first_size


class EnlargedShape(Shape):
    """The form of an enlarged image: `image` and `html_info`."""

    def whole(self, answer: UpscaleAnswer) -> bytes:
        return encode({"html_info": "", "image": answer.data[0].b64_json})


def read_texts(texts: Mapping[str, str], models: Sequence[ImageModelInfo]) -> dict[str, Any]:
    """The answer of `png-info` about the texts in a file, with warnings if the model that they name
    has other files now."""
    items = dict(texts)
    info = items.pop(PARAMETERS_CHUNK, None) or items.get(EXIF_COMMENT, "")
    settings = read_parameters(info) if info else {}
    then = MadeWith.model_construct(**read_hashes(settings))
    named = (one for one in models if one.model == settings.get("Model"))
    warnings = [text for one in named for text in changed_since(then, one, then.adapters or ())]
    return {"info": info, "items": items, "parameters": settings, "warnings": warnings}
