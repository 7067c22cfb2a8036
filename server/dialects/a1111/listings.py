"""Lists for the menus of A1111's clients, `/sdapi/v1/...`; some are always empty."""

from typing import Any

from fastapi import APIRouter

from engine.contract.operations import DRAW, ENLARGE
from server.dependencies import StateDep
from server.dialects.a1111.shape import answers
from server.dialects.a1111.titles import title_of
from server.images.hires import LABELS
from server.images.metadata import short_hash
from server.images.sampler_names import SCHEDULE_TYPES, names_of

router = APIRouter(tags=["A1111"])

_SEE_METRICS = {"error": "see GET /metrics"}
_EMPTY: dict[str, Any] = {
    "cmd-flags": {},
    "embeddings": {"loaded": {}, "skipped": {}},
    "extensions": [],
    "face-restorers": [],
    "hypernetworks": [],
    "memory": {"ram": _SEE_METRICS, "cuda": _SEE_METRICS},
    "prompt-styles": [],
    "realesrgan-models": [],
    "script-info": [],
    "scripts": {"txt2img": [], "img2img": []},
    "sd-vae": [],
}
"""Lists of things that this server does not have."""

_REFRESHED = ("checkpoints", "embeddings", "loras", "vae")
"""Menus that clients have read again from folders. Here they always list what is served."""


@router.get("/sdapi/v1/samplers", summary="List the samplers", responses=answers([]))
async def samplers(state: StateDep) -> list[dict[str, Any]]:
    """Lists the samplers of all image models, with their schedule types; aliases are our own
    names."""
    facts = [info.denoising for info in state.engine.infos(DRAW)]
    names = {name: None for one in facts if one is not None for name in one.schedulers}
    return [
        {"name": " ".join(names_of(name)).strip(), "aliases": [name], "options": {}}
        for name in names
    ]


@router.get("/sdapi/v1/sd-models", summary="List the image models", responses=answers([]))
async def sd_models(state: StateDep) -> list[dict[str, Any]]:
    """Lists the image models that requests can use now, without paths. The digest is that of the
    model's one file, or of the list of its files."""
    return [
        {
            "title": title_of(info),
            "model_name": info.model,
            "hash": short_hash(info.digest) or None,
            "sha256": info.digest or None,
            "filename": info.model,
            "config": None,
        }
        for info in state.engine.infos(DRAW)
    ]


@router.get("/sdapi/v1/loras", summary="List the LoRA adapters", responses=answers([]))
async def loras(state: StateDep) -> list[dict[str, Any]]:
    """Lists the adapters of all image models, which prompts name as `<lora:NAME:SCALE>`, without
    paths."""
    return [
        {"name": name, "alias": name, "path": "", "metadata": {"model": info.model}}
        for info in state.engine.infos(DRAW)
        for name in info.adapters
    ]


@router.get("/sdapi/v1/schedulers", summary="List the schedule types", responses=answers([]))
async def schedulers() -> list[dict[str, Any]]:
    """Lists all schedule types. Which of them a sampler can use depends on the model: see
    `samplers`."""
    return [
        {
            "name": label.lower(),
            "label": label,
            "aliases": None,
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for label in ("Automatic", "Uniform", *SCHEDULE_TYPES)
    ]


@router.get(
    "/sdapi/v1/latent-upscale-modes",
    summary="List the ways to enlarge between two passes",
    responses=answers([]),
)
async def latent_upscale_modes() -> list[dict[str, Any]]:
    """Lists values of `hr_upscaler`; the last ones enlarge the picture itself."""
    return [{"name": label} for label in LABELS.values()]


@router.get("/sdapi/v1/upscalers", summary="List the upscalers", responses=answers([]))
async def upscalers(state: StateDep) -> list[dict[str, Any]]:
    """Lists the upscalers that serve now, and those that are loaded on first use, without paths."""
    scales: dict[str, int | None] = dict.fromkeys(state.first_use.offered(ENLARGE))
    scales |= {info.model: info.scale for info in state.engine.infos(ENLARGE)}
    return [
        {
            "name": name,
            "model_name": name,
            "model_path": None,
            "model_url": None,
            "scale": scale,
        }
        for name, scale in scales.items()
    ]


def _add_empty(name: str, listing: Any) -> None:
    async def empty() -> Any:
        return listing

    router.add_api_route(f"/sdapi/v1/{name}", empty, include_in_schema=False)


async def _refresh() -> None:
    return None


for _name, _listing in _EMPTY.items():
    _add_empty(_name, _listing)
for _name in _REFRESHED:
    _path = f"/sdapi/v1/refresh-{_name}"
    router.add_api_route(_path, _refresh, methods=["POST"], include_in_schema=False)
