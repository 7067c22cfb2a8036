"""Transformers of image models whose files have linear layers in few bits."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.diffusion.families.footprint import weight_bytes
from engine.errors import MissingWeight, ModelLoadError, ShapeMismatch
from engine.quantization.method_module import MethodModule
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.tiny_families import load_folder
from tests.helpers.diffusion.tiny_flux2 import flux2_parts
from tests.helpers.diffusion.tiny_language import qwen_image_parts, z_image_parts
from tests.helpers.diffusion.tiny_transformers import flux_parts, pipeline_of, predict, sd3_parts
from tests.helpers.json_files import edit_json
from tests.helpers.quantization import toy_format
from tests.helpers.quantization.gptq_checkpoints import Layout, quantised
from tests.helpers.quantization.stored_formats import VARIETIES

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save(kind: str, folder: Path) -> None:
    if kind == "flux2":
        flux2_parts(11).pipeline().save_pretrained(folder)
        return
    makers = {
        "flux": lambda: flux_parts(11, {"guidance_embeds": True}),
        "sd3": lambda: sd3_parts(11, with_t5=False),
        "z_image": lambda: z_image_parts(11),
        "qwen_image": lambda: qwen_image_parts(11),
    }
    parts = makers[kind]()
    pipeline_of(parts).save_pretrained(folder)


def rewrite(component: Path, quantise: Any, config: dict[str, Any]) -> int:
    """Quantise the matrices inside blocks; beside the file a twin with what they stand for.

    Returns:
        Number of layers.
    """
    tensors, plain, count = {}, {}, 0
    for name, tensor in load_file(component / WEIGHTS).items():
        layer, _, kind = name.rpartition(".")
        in_block = any(part.isdigit() for part in layer.split("."))
        plain[name] = tensor
        if kind == "weight" and tensor.ndim == 2 and in_block:
            made, plain[name] = quantise(tensor)
            tensors |= {f"{layer}.{own}": value for own, value in made.items()}
            count += 1
        else:
            tensors[name] = tensor
    save_file(tensors, component / WEIGHTS)
    save_file({name: t.contiguous() for name, t in plain.items()}, component / "twin")
    edit_json(component / "config.json", {"quantization_config": config})
    return count


def use_twin(component: Path) -> None:
    (component / "twin").rename(component / WEIGHTS)
    edit_json(component / "config.json", {}, without="quantization_config")


def check_twin(folder: Path, num_layers: int | None, *, atol: float) -> tuple[int, int]:
    """Check that a model has packed layers, and predicts what its twin does.

    Returns:
        The layers' numbers, and the bytes that the twin takes beyond it.
    """
    checkpoint = Checkpoint("diffusers", folder, "tiny")
    family = load_folder(folder)
    layers = [m for m in family._transformer.modules() if isinstance(m, MethodModule)]
    assert len(layers) >= 14 if num_layers is None else len(layers) == num_layers
    found = predict(family)
    packed = weight_bytes(checkpoint, dtype=torch.float32)
    use_twin(folder / "transformer")
    torch.testing.assert_close(found, predict(load_folder(folder)), atol=atol, rtol=0)
    plain = weight_bytes(checkpoint, dtype=torch.float32)
    return sum(m.in_features * m.out_features for m in layers), plain - packed


@pytest.fixture(params=["flux", "sd3", "z_image", "qwen_image"])
def toy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose transformer is in a format that is a module and a row of the table."""
    toy_format.register(monkeypatch)
    save(request.param, tmp_path)
    rewrite(tmp_path / "transformer", toy_format.toy, {"quant_method": "toy"})
    return tmp_path


def test_a_transformer_stays_packed_and_predicts_what_its_twin_does(toy: Path) -> None:
    with pytest.raises(ModelLoadError, match="quantised already"):
        load_folder(toy, quantization="bnb-int8")
    numbers, freed = check_twin(toy, None, atol=1e-4)
    assert freed == 3 * numbers


def test_whatever_is_stated_is_refused_with_a_reason(toy: Path) -> None:
    for stated in ("toy", [], ["toy"], 7, True):
        edit_json(toy / "transformer" / "config.json", {"quantization_config": stated})
        with pytest.raises(ModelLoadError):
            load_folder(toy)


def test_what_is_wrong_is_named(toy: Path) -> None:
    file = toy / "transformer" / WEIGHTS
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".codes"))
    layer = name.removesuffix(".codes")
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    cases: list[tuple[dict[str, torch.Tensor], type[ModelLoadError], str]] = [
        (rest, MissingWeight, f"{layer}.weight"),
        (rest | {name: tensors[name][:-1].contiguous()}, ShapeMismatch, layer),
        (rest | {name: tensors[name].float()}, ShapeMismatch, f"{name} has type float32"),
        (tensors | {"a.codes": tensors[name].clone()}, ShapeMismatch, "a, which is not a layer"),
        (tensors | {"b": tensors[name].clone()}, ShapeMismatch, "tensor b "),
    ]
    del rest[f"{layer}.row_scales"]
    cases.append((rest | {name: tensors[name]}, MissingWeight, f"{layer}.row_scales"))
    for spoilt, error, words in cases:
        save_file(spoilt, file)
        with pytest.raises(error, match=words.replace(".", r"\.")) as caught:
            load_folder(toy)
        assert str(toy) not in str(caught.value)


@pytest.mark.each_value
@pytest.mark.parametrize("layout", [Layout(), Layout(desc_act=True, group_size=16, sym=True)])
@pytest.mark.parametrize("kind", ["flux", "flux2", "sd3"])
def test_gptq_transformers_are_served_packed(kind: str, layout: Layout, tmp_path: Path) -> None:
    save(kind, tmp_path)
    quantise = partial(quantised, layout=layout)
    count = rewrite(tmp_path / "transformer", quantise, layout.config())
    check_twin(tmp_path, count, atol=1e-4)


@pytest.mark.drawn(8)  # of layers of every format, tests/engine/quantization has tests
@pytest.mark.parametrize("name", VARIETIES)
def test_transformers_of_every_format_are_served_packed(name: str, tmp_path: Path) -> None:
    variety = VARIETIES[name]
    save("flux", tmp_path)
    count = rewrite(tmp_path / "transformer", variety.quantise, variety.config)
    numbers, freed = check_twin(tmp_path, count, atol=1e-3)
    assert freed == pytest.approx(numbers * (4 - variety.bits / 8), rel=0.05)
