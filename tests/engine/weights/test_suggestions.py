"""What a mistyped model reference is answered with on the operator's terminal."""

from pathlib import Path

import pytest

from engine.errors import ModelNotFound
from engine.weights.source import resolve_source


def hint_for(ref: str) -> str:
    with pytest.raises(ModelNotFound) as caught:
        resolve_source(ref, cache_dir=Path("unused"), on_progress=print, offline=True)
    return caught.value.hint


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A working folder with models, and a hub cache with one."""
    for name in ("my-finetune", "qwen", ".hidden-finetune"):
        (tmp_path / name).mkdir()
    (tmp_path / "SmolLM2.Q8_0.gguf").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "hub" / "models--Qwen--Qwen3-0.6B").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("ref", "meant"),
    [
        ("smollm2-135m-instuct", "smollm2-135m-instruct"),
        ("Tandem-Shape", "tandem-shapes"),
        ("./my-finetun", "./my-finetune"),
        ("my_finetune", "my-finetune"),
        ("./smollm2.q8_0.guff", "./SmolLM2.Q8_0.gguf"),
        ("Qwen/Qwen3-0.6", "Qwen/Qwen3-0.6B"),
        ("qwen/qwen3-0.6b", "Qwen/Qwen3-0.6B"),
    ],
)
def test_did_you_mean(ref, meant, places):
    hint = hint_for(ref)
    assert f"did you mean {meant}" in hint
    assert "notes.txt" not in hint
    assert ".hidden" not in hint


def test_the_whole_path_is_named(places):
    assert hint_for("./nothing/like/it").startswith(f"looked for {places}/nothing/like/it")
    assert hint_for("/nowhere/x.gguf") == "looked for /nowhere/x.gguf"
    assert f"the hub's cache {places}/hub" in hint_for("org/unheard-of")


def test_absolute_paths_are_compared_with_what_is_there(places):
    assert f"did you mean {places}/my-finetune?" in hint_for(f"{places}/my-finetunes")
