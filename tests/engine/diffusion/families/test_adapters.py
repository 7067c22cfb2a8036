"""Adapters of every family: unmerged against merged weights, and against diffusers with PEFT."""

import copy
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

from engine.contract.adapter_orders import AdapterReport
from engine.contract.draw import LoraUse
from engine.diffusion.denoising import Denoising
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.flux import pack
from engine.diffusion.families.flux_names import FLUX_1, FLUX_2, Release
from engine.diffusion.families.flux_names import original_names as flux_names
from engine.diffusion.families.original_names import OriginalNames
from engine.diffusion.families.stable_diffusion_3_names import original_names as sd3_names
from engine.diffusion.families.unet_names import original_names as unet_names
from engine.diffusion.families.z_image_names import original_names as z_image_names
from kernels import native
from tests.helpers.adapters.image_adapters import (
    dotted,
    kohya,
    layer_paths,
    load,
    merge,
    table_of,
    unload,
    write,
)
from tests.helpers.diffusion.engine_runs import take_step
from tests.helpers.diffusion.original_names import unet_tensors
from tests.helpers.diffusion.tiny_families import FAMILIES, T5_TOKENS, family_of, parts_of
from tests.helpers.diffusion.tiny_flux2 import TOKENS, flux2_transformer
from tests.helpers.diffusion.tiny_pipelines import tiny_parts
from tests.helpers.diffusion.tiny_transformers import (
    draw_with,
    flux_parts,
    pipeline_of,
    sd3_parts,
)
from tests.helpers.diffusion.toy_family import request as toy_request

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

WIDTH, HEIGHT, STEPS, SCALE = 16, 16, 2, 3.0
UNMERGED, PARITY = 1e-5, 1e-4
"""The largest differences of latents up to 1, in fp32."""
PROMPT, NEGATIVE = "a red fox", "rain"
WAYS = [("lora", None), ("locon", None), ("loha", None), ("lokr", None), ("lora", "dora_scale")]


def oracle(kind: str, parts: Any) -> Any:
    if kind in ("sd", "sdxl"):
        return parts.pipeline(
            StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
        )
    if kind == "flux2":
        return parts.pipeline()
    return pipeline_of(parts)


def denoiser(kind: str) -> str:
    return "unet" if kind in ("sd", "sdxl") else "transformer"


def components(kind: str) -> dict[str, str]:
    """Give the components that an adapter changes, with kohya's names for them."""
    others = {
        "sd": {"text_encoder": "lora_te"},
        "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        "sd3": {"text_encoder": "lora_te1", "text_encoder_3": "lora_te3"},
        "flux": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
        "flux2": {},
        "z_image": {"text_encoder": "lora_te"},
        "qwen_image": {},
        "pixart": {"text_encoder": "lora_te3"},
    }
    return {denoiser(kind): "lora_unet"} | others[kind]


def request(loras: Any = (), **changes: Any) -> Any:
    settings = {
        "width": WIDTH,
        "height": HEIGHT,
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "negative_prompt": NEGATIVE,
    }
    made = toy_request(prompt=PROMPT, **{**settings, **changes})
    return replace(made, loras=[list(setting) for setting in loras])


@torch.inference_mode()
def draw(family: Any, *requests: Any) -> list[torch.Tensor]:
    """Final latents of all their images, drawn in shared calls."""
    factory = DrawingFactory(family)
    drawings = [drawing for one in requests for drawing in factory.create(one)]
    while not drawings[0].finished:
        take_step(*(drawing.stage for drawing in drawings))
    assert all(isinstance(drawing.stage, Denoising) for drawing in drawings)
    return [drawing.stage.final().clone() for drawing in drawings]


def close(ours: torch.Tensor, theirs: torch.Tensor, limit: float, case: Any) -> None:
    worst, size = (ours - theirs).abs().max().item(), max(1.0, theirs.abs().max().item())
    assert worst < limit * size, f"{case}: {worst} at latents up to {size}"


def adapters(
    kind: str, parts: Any, path: Any, seed: int, way: str = "lora", lengths: str | None = None
) -> dict[str, Any]:
    """A file for some layers of each component: kohya's names of it, and updates by component."""
    tensors, updates = {}, {}
    for place, (name, prefix) in enumerate(components(kind).items()):
        model = getattr(parts, name)
        paths = layer_paths(model)
        paths = sorted(random.Random(seed).sample(paths, min(12, len(paths))))
        named = kohya(prefix)
        made = write(model, paths, named, way=way, seed=seed + place, size=0.5, lengths=lengths)
        tensors |= made.tensors
        updates[name] = made.updates
    made.tensors = tensors
    made.save(path)
    return updates


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 30)


@pytest.mark.each_value
@pytest.mark.parametrize(("way", "lengths"), WAYS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_unmerged_equals_merged(kind, way, lengths, tmp_path, seed):
    parts = parts_of(kind, seed % 1000)
    other = copy.deepcopy(parts)
    family = family_of(kind, parts)
    [base] = draw(family, request(seed=seed))
    updates = adapters(kind, parts, tmp_path / "a.safetensors", seed, way, lengths)
    table = table_of(family.adapted)
    report = load(table, "a", tmp_path / "a.safetensors")
    assert isinstance(report, AdapterReport), report
    assert report.num_layers == sum(len(each) for each in updates.values())
    use = LoraUse(name=table.key_of("a"), scale=0.8)
    [ours] = draw(family, request([[use]], seed=seed))
    for name, each in updates.items():
        merge(getattr(other, name), each, 0.8)
    [merged] = draw(family_of(kind, other), request(seed=seed))
    close(ours, merged, UNMERGED, (kind, way, seed))
    assert (merged - base).abs().max() > 1e-3, "it does something"
    nothing = LoraUse(name=use.name, scale=0.0)
    [zero] = draw(family, request([[nothing]], seed=seed))
    assert torch.equal(zero, base), "bit for bit"
    unload(table, "a")
    assert torch.equal(draw(family, request(seed=seed))[0], base), "nothing is left of it"


@pytest.mark.each_value
@pytest.mark.parametrize(("way", "lengths"), WAYS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_mixture_is_what_each_is_alone(kind, way, lengths, tmp_path, seed):
    """Bit for bit, where there are operations of our own."""
    parts = parts_of(kind, seed % 1000)
    family = family_of(kind, parts)
    table = table_of(family.adapted)
    for place, (name, how) in enumerate({"a": (way, lengths), "b": ("lora", None)}.items()):
        adapters(kind, parts, tmp_path / f"{name}.safetensors", seed + 10 * place, *how)
        load(table, name, tmp_path / f"{name}.safetensors")
    a, b = (LoraUse(name=table.key_of(name)) for name in "ab")
    weak = replace(a, scale=0.25)
    settings = [[a], [], [b], [b, weak], [weak]]
    requests = [request([one], seed=seed + place) for place, one in enumerate(settings)]
    together = draw(family, *requests)
    for one, found in zip(requests, together, strict=True):
        [alone] = draw(family, one)
        close(found, alone, UNMERGED, (kind, seed, one.loras))
        assert native.missing() is not None or torch.equal(found, alone), (kind, seed, one.loras)
    assert len({round(float(found.sum()), 6) for found in together}) == len(settings)


PEFT_LAYERS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "conv2", "proj_in"),
    "transformer": (
        *("to_q", "to_k", "add_v_proj", "ff.net.2", "norm1.linear", "proj_mlp"),
        *("ff.linear_in", "to_qkv_mlp_proj", "img.linear"),
    ),
    "text_encoder": ("q_proj", "v_proj", "out_proj", "fc1"),
}


@pytest.mark.each_value
@pytest.mark.parametrize("lengths", [None, "lora_magnitude_vector"])
@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "pixart"])
def test_it_is_what_diffusers_draws(kind, lengths, tmp_path, seed):
    """The same file in both, as diffusers saves it. DoRA at a scale other than 1 is PEFT's own."""
    scale = 0.6 if lengths is None else 1.0
    parts = parts_of(kind, seed % 1000)
    family = family_of(kind, copy.deepcopy(parts))
    written: dict[str, Any] = {}
    names = [name for name in components(kind) if name in PEFT_LAYERS]
    # diffusers adapts no language models.
    for place, name in enumerate(names[:1] if kind == "z_image" else names):
        model = getattr(parts, name)
        paths = [path for path in layer_paths(model) if path.endswith(PEFT_LAYERS[name])]
        # transformers, which reads those of text encoders, leaves DoRA's lengths out.
        own = None if name == "text_encoder" else lengths
        options = {"alpha": None, "seed": seed + place, "size": 0.5, "lengths": own}
        made = write(model, paths, dotted(name), **options)
        written |= made.tensors
    made.tensors = {
        key.replace("lora_down.", "lora_A.").replace("lora_up.", "lora_B."): tensor
        for key, tensor in written.items()
    }
    file = made.save(tmp_path / "pytorch_lora_weights.safetensors")
    table = table_of(family.adapted)
    report = load(table, "a", tmp_path)
    assert isinstance(report, AdapterReport) and report.num_left_out == 0, report
    [base] = draw(family, request(seed=seed))
    [ours] = draw(family, request([[LoraUse(name=table.key_of("a"), scale=scale)]], seed=seed))
    pipeline = oracle(kind, parts)
    pipeline.load_lora_weights(str(file.parent), adapter_name="a")
    pipeline.set_adapters(["a"], [scale])
    arguments = {
        "prompt": PROMPT,
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "width": WIDTH,
        "height": HEIGHT,
        "generator": torch.Generator().manual_seed(seed),
    }
    if kind == "z_image":
        arguments["guidance_scale"] -= 1  # its scales are smaller by 1
    if kind == "qwen_image":
        arguments["true_cfg_scale"] = arguments.pop("guidance_scale")
    if kind in ("flux", "flux2"):
        arguments["max_sequence_length"] = T5_TOKENS if kind == "flux" else TOKENS
    else:
        arguments["negative_prompt"] = NEGATIVE
    theirs = draw_with(pipeline, **arguments)[0]
    if kind in ("flux", "qwen_image"):
        ours, base = pack(ours), pack(base)
    elif kind == "flux2":
        ours, base = (each.flatten(2).transpose(1, 2) for each in (ours, base))
    close(ours, theirs, PARITY, (kind, seed))
    assert (theirs - base).abs().max() > 1e-3, "it does something"


def test_names_of_the_original_unet() -> None:
    for xl in (False, True):
        unet = tiny_parts(xl=xl).unet
        wanted = {}
        tensors = unet_tensors(unet)
        by_place = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        for path in layer_paths(unet):
            original = by_place[unet.get_submodule(path).weight.data_ptr()]
            name = original.removeprefix("model.diffusion_model.").removesuffix(".weight")
            wanted[name] = (path,)
        paths = [path for path, _ in unet.named_modules()]
        found = unet_names(paths)
        assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("release", [FLUX_1, FLUX_2])
def test_flux_has_the_names_of_its_gguf_files(release: Release) -> None:
    if release is FLUX_1:
        transformer = flux_parts(0, {"guidance_embeds": True}).transformer
    else:
        transformer = flux2_transformer()
    original = flux_names(transformer.config, release)
    sizes = {path: len(transformer.get_submodule(path).weight) for path in layer_paths(transformer)}
    names = {name: paths for name, paths in original.modules.items() if sizes.keys() >= set(paths)}
    for name, paths in names.items():
        rows = torch.arange(sum(sizes[path] for path in paths))
        converted = original.to_diffusers(f"{name}.weight", rows, sizes)
        first = 0
        for path in paths:
            wanted = torch.arange(first, first + sizes[path])
            assert torch.equal(converted[f"{path}.weight"], wanted), (name, path)
            first += sizes[path]
    assert set(sizes) - {path for paths in names.values() for path in paths} == {"norm_out.linear"}


def test_sd3_has_the_models_names_each_once() -> None:
    sd3 = sd3_parts(0).transformer
    known = [path for paths in sd3_names(sd3.config).modules.values() for path in paths]
    assert len(known) == len(set(known))
    left = set(layer_paths(sd3)) - set(known)
    assert left == {"norm_out.linear", "transformer_blocks.1.norm1_context.linear"}


def test_layers_are_named_by_their_paths() -> None:
    """Fused blocks have the paths of those that they replace."""
    parts = tiny_parts()
    before = set(layer_paths(parts.unet))
    adapted = parts.family().adapted
    assert {path for component, path in adapted.layers if component == "unet"} == before
    assert all(isinstance(module, nn.Module) for module in parts.unet.modules())


SPELLINGS = {
    "kohya": (kohya("lora_unet"), ("lora_down.weight", "lora_up.weight")),
    "ComfyUI": (dotted("diffusion_model"), ("lora_down.weight", "lora_up.weight")),
    "ai-toolkit": (dotted("diffusion_model"), ("lora_A.weight", "lora_B.weight")),
    "PEFT": (dotted("base_model.model"), ("lora_A.default.weight", "lora_B.default.weight")),
    "bare": (lambda path: path, ("lora_A.weight", "lora_B.weight")),
}
"""How tools name a layer's adapter, and its two parts."""
RELEASED = {
    "flux": flux_names,
    "flux2": lambda config: flux_names(config, FLUX_2),
    "sd3": sd3_names,
    "z_image": z_image_names,
    "qwen_image": lambda config: OriginalNames(),
}


class Fused(nn.Module):
    """Some layers of a transformer as its original release has them."""

    def __init__(self, model: nn.Module, parts: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.layers = {}
        for name, paths in parts.items():
            weights = [model.get_submodule(path).weight.detach().flatten(1) for path in paths]
            self.layers[name] = nn.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False)
            self.layers[name].weight.data = torch.cat(weights)

    def get_submodule(self, target: str) -> nn.Module:
        return self.layers[target]


@pytest.mark.parametrize("kind", RELEASED)
def test_adapters_with_names_of_the_release_equal_merged(kind, tmp_path, seed):
    parts = parts_of(kind, seed % 1000)
    other = copy.deepcopy(parts)
    model = parts.transformer
    linear = set(layer_paths(model, kinds=nn.Linear))
    original = {
        name: paths
        for name, paths in RELEASED[kind](model.config).modules.items()
        if linear >= set(paths)
    }
    alike = linear - {path for paths in original.values() for path in paths}
    original |= {path: (path,) for path in alike if kind in ("z_image", "qwen_image")}
    fused, family = Fused(model, original), family_of(kind, parts)
    table, drawn = table_of(family.adapted), []
    for spelling, (name_of, kinds) in SPELLINGS.items():
        made = write(fused, original, name_of, seed=seed, size=0.5)
        for key in list(made.tensors):
            for old, new in zip(("lora_down.weight", "lora_up.weight"), kinds, strict=True):
                if key.endswith(old):
                    made.tensors[key.replace(old, new)] = made.tensors.pop(key)
        report = load(table, spelling, made.save(tmp_path / f"{spelling}.safetensors"))
        assert isinstance(report, AdapterReport) and report.num_left_out == 0, report
        drawn += draw(family, request([[LoraUse(name=table.key_of(spelling))]], seed=seed))
    for name, paths in original.items():
        sizes = [len(model.get_submodule(path).weight) for path in paths]
        pieces = made.updates[name].split(sizes)
        merge(other.transformer, dict(zip(paths, pieces, strict=True)))
    [merged] = draw(family_of(kind, other), request(seed=seed))
    for spelling, ours in zip(SPELLINGS, drawn, strict=True):
        close(ours, merged, UNMERGED, (kind, spelling, seed))
