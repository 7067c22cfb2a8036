"""The names that files give to a model's layers.

All spellings are made from the layers that the model has, so underscores need not be guessed apart:
kohya's `lora_unet_down_blocks_0_...`, diffusers' and PEFT's `unet.down_blocks.0...`, ComfyUI's
`diffusion_model....`, and the names of the original releases.
"""

from collections.abc import Iterable, Mapping

from engine.lora.images.layers import TEXT_ENCODER, AdaptedLayers, Place

Target = tuple[Place, ...]
"""One layer, or several whose outputs lie one after the other in the file."""

_BARE = ("base_model.model.", "base_model.", "")
_DENOISER = (
    ("unet.", "transformer.", "diffusion_model.", *_BARE),
    ("lora_unet_", "lora_transformer_", "lycoris_"),
)
_TEXT = {
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
_T5_BLOCK = "encoder.block."


def layer_names(adapted: AdaptedLayers) -> dict[str, Target]:
    """Return every spelling of every layer. Where two are spelt alike, the denoiser's comes
    first."""
    names: dict[str, Target] = {}
    paths: dict[str, list[str]] = {}
    for component, path in adapted.layers:
        paths.setdefault(component, []).append(path)
    for component in sorted(paths, key=lambda name: name.startswith(TEXT_ENCODER)):
        aliases = {
            alias: several
            for alias, several in adapted.aliases.get(component, {}).items()
            if all((component, path) in adapted.layers for path in several)
        }
        dotted, flat = _prefixes(component, paths[component])
        for spelling, target in _spellings(component, paths[component], aliases):
            for prefix in dotted:
                names.setdefault(prefix + spelling, target)
            for prefix in flat:
                names.setdefault(prefix + spelling.replace(".", "_"), target)
    return names


def _prefixes(component: str, paths: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The prefixes of dotted names, and of names with underscores for dots."""
    if not component.startswith(TEXT_ENCODER):
        return _DENOISER
    flat = _TEXT.get(component, ())
    if any(path.startswith(_T5_BLOCK) for path in paths):
        # FLUX has T5 in the second place; kohya calls it the third everywhere.
        flat = (*flat, *_TEXT["text_encoder_3"])
    return (f"{component}.", *_BARE), flat


def _spellings(
    component: str, paths: Iterable[str], aliases: Mapping[str, tuple[str, ...]]
) -> Iterable[tuple[str, Target]]:
    for path in paths:
        target = ((component, path),)
        yield path, target
        if path.endswith(".to_out.0"):
            yield path.removesuffix(".0"), target
        if component.startswith(TEXT_ENCODER):
            # transformers 5 removed CLIP's wrapper, which files still name.
            yield f"text_model.{path}", target
            yield path.removeprefix("text_model."), target
    for alias, several in aliases.items():
        yield alias, tuple((component, path) for path in several)
