import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog
from huggingface_hub import constants, snapshot_download

from engine.errors import ModelLoadError, ModelNotFound
from engine.weights import hub
from engine.weights.adapter_source import resolve_adapter
from engine.weights.source import Checkpoint, resolve_source

FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"x",
    "model.safetensors": bytes(300_000),
    "pytorch_model.bin": bytes(1000),
    "onnx/model.safetensors": b"1",
    "README.md": b"hello",
}


def usual(tmp_path: Path) -> dict[str, Any]:
    """The usual options of a fetch."""
    return {"cache_dir": tmp_path / "cache", "on_progress": lambda fraction, line: None}


def resolve(ref: str, tmp_path: Path, **options: Any) -> Checkpoint:
    return resolve_source(ref, **(usual(tmp_path) | options))


@pytest.fixture
def hub_with_model(local_hub):
    """A hub with org/model."""
    local_hub.repos["org/model"] = FILES
    return local_hub


def test_fetches_what_serving_needs_and_asks_no_second_time(hub_with_model, tmp_path):
    checkpoint = resolve("org/model", tmp_path)
    assert (checkpoint.layout, checkpoint.name) == ("folder", "org/model")
    assert sorted(p.name for p in checkpoint.path.rglob("*")) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    num_requests = len(hub_with_model.requests)
    assert num_requests > 0
    assert resolve("org/model", tmp_path) == checkpoint
    assert resolve("org/model", tmp_path, offline=True) == checkpoint
    assert len(hub_with_model.requests) == num_requests


def test_a_file_that_vanished_is_fetched_again(hub_with_model, tmp_path):
    checkpoint = resolve("org/model", tmp_path)
    os.remove(os.path.realpath(checkpoint.path / "model.safetensors"))
    again = resolve("org/model", tmp_path)
    assert (again.path / "model.safetensors").stat().st_size == 300_000


def test_progress_counts_bytes(local_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_POLL_S", 0.001)
    local_hub.repos["org/model"] = FILES | {"model.safetensors": os.urandom(40_000_000)}
    seen = []
    resolve("org/model", tmp_path, on_progress=lambda *args: seen.append(args))
    fractions = [fraction for fraction, _ in seen if fraction is not None]
    assert fractions == sorted(fractions)
    assert 0 < fractions[-1] <= 1
    assert "of 40 MB" in seen[-1][1]


def test_an_interrupted_download_is_resumed(local_hub, tmp_path):
    data = os.urandom(400_000)
    local_hub.repos["org/model"] = FILES | {"model.safetensors": data}
    name = f"/org/model/resolve/{'0123456789abcdef' * 2}01234567/model.safetensors"
    local_hub.break_after[name] = 200_000
    checkpoint = resolve("org/model", tmp_path)
    assert (checkpoint.path / "model.safetensors").read_bytes() == data
    first, second = local_hub.asked("GET", "model.safetensors")
    assert first is None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= 100_000


def test_a_revision(hub_with_model, tmp_path):
    assert resolve("org/model@v1", tmp_path).name == "org/model"
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        resolve("org/model@v9", tmp_path)


def test_a_gguf_file_of_a_repository(local_hub, tmp_path):
    local_hub.repos["org/model"] = {"a.Q4_K_M.gguf": b"GGUF1", "b.gguf": b"GGUF2", "x.json": b"{}"}
    checkpoint = resolve("org/model:b.gguf", tmp_path)
    assert (checkpoint.layout, checkpoint.name) == ("gguf", "b")
    assert checkpoint.path.read_bytes() == b"GGUF2"
    assert local_hub.asked("GET", "a.Q4_K_M.gguf") == []
    assert resolve("org/model:b.gguf", tmp_path, offline=True) == checkpoint
    with pytest.raises(ModelNotFound, match=r"name one, as in org/model:a.Q4_K_M.gguf"):
        resolve("org/model", tmp_path)
    with pytest.raises(ModelNotFound, match=r"no file 'c.gguf'; its GGUF files: a.Q4_K_M.gguf, b"):
        resolve("org/model:c.gguf", tmp_path)


def test_a_repository_with_one_gguf_file(local_hub, tmp_path):
    local_hub.repos["org/model-GGUF"] = {"a.gguf": b"GGUF1", "README.md": b""}
    checkpoint = resolve("org/model-GGUF", tmp_path)
    assert (checkpoint.layout, checkpoint.path.name) == ("gguf", "a.gguf")


@pytest.mark.parametrize(
    ("folder", "ref"), [("", "org/model"), ("q4/", "org/model:q4/m-00002-of-00003.gguf")]
)
def test_all_parts_of_a_split_file_are_fetched(folder, ref, local_hub, tmp_path):
    parts = {f"{folder}m-0000{i}-of-00003.gguf": b"GGUF%d" % i for i in (1, 2, 3)}
    local_hub.repos["org/model"] = parts | {"README.md": b""}
    checkpoint = resolve(ref, tmp_path)
    assert (checkpoint.layout, checkpoint.path.name) == ("gguf", "m-00001-of-00003.gguf")
    assert checkpoint.name == ("m" if ":" in ref else "org/model")
    beside = {path.name: path.read_bytes() for path in checkpoint.path.parent.iterdir()}
    assert beside == {Path(name).name: data for name, data in parts.items()}
    assert resolve(ref, tmp_path, offline=True) == checkpoint
    local_hub.repos["org/other"] = dict(list(parts.items())[:2])
    with pytest.raises(ModelNotFound, match=rf"no file '{folder}m-00003-of-00003.gguf'"):
        resolve(ref.replace("model", "other"), tmp_path)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, r"no model org/model .* spelling.* HF_TOKEN"),
        ({"repos": {"org/model": FILES}, "gated": {"org/model"}}, "accept its licence"),
        ({"status": 401}, "check HF_TOKEN"),
        ({"status": 403}, "accept its licence"),
        ({"status": 418}, "418"),
    ],
)
def test_refusals(state, words, local_hub, tmp_path):
    vars(local_hub).update(state)
    with pytest.raises(ModelNotFound, match=words):
        resolve("org/model", tmp_path)


def test_only_pickles_are_refused_before_the_download(local_hub, tmp_path):
    local_hub.repos["org/old"] = {"config.json": b"{}", "pytorch_model.bin": bytes(1000)}
    with pytest.raises(ModelLoadError, match="only as pickles"):
        resolve("org/old", tmp_path)
    assert local_hub.asked("GET", "pytorch_model.bin") == []


def test_offline_and_never_fetched(hub_with_model, tmp_path):
    with pytest.raises(ModelNotFound, match="offline mode"):
        resolve("org/model", tmp_path, offline=True)
    assert hub_with_model.requests == []


def test_what_another_tool_fetched_serves_offline(hub_with_model, tmp_path):
    snapshot_download("org/model")
    num_requests = len(hub_with_model.requests)
    assert resolve("org/model", tmp_path, offline=True).layout == "folder"
    assert len(hub_with_model.requests) == num_requests


def test_a_partial_snapshot_does_not_serve_offline(local_hub, tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    local_hub.repos["org/model"] = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
    }
    snapshot_download("org/model", ignore_patterns="*2.safetensors")
    with pytest.raises(ModelNotFound):
        resolve("org/model", tmp_path, offline=True)


def test_no_network_uses_the_library_cache(hub_with_model, tmp_path, monkeypatch):
    snapshot_download("org/model")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve("org/model", tmp_path).layout == "folder"
    with (
        structlog.testing.capture_logs() as lines,
        pytest.raises(ModelNotFound, match="check the network"),
    ):
        resolve("org/other", tmp_path)
    [warning] = [line for line in lines if line["log_level"] != "debug"]
    assert "refused" in warning["reason"] and "\n" not in warning["reason"]
    assert "exc_info" not in warning, "sixty lines that say no more"


SHARDED = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        # Mistral's second copy.
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", *SHARDED, "original/model.safetensors"], SHARDED),
        (["weights.safetensors", "merges.txt"], ["weights.safetensors", "merges.txt"]),
    ],
)
def test_one_copy_of_the_weights(names, wanted):
    assert hub.select_files("org/model", names, None) == wanted


@pytest.mark.slow
def test_the_environment_reaches_the_library(hub_with_model, tmp_path):
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, which it reads when it is imported."""
    code = (
        "import sys; from pathlib import Path; from engine.weights.source import resolve_source\n"
        "print(resolve_source('org/model', cache_dir=Path(sys.argv[1]), "
        "on_progress=lambda *a: None).path)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")],
        env=os.environ | {"HF_ENDPOINT": hub_with_model.url, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    path = Path(result.stdout.strip())
    assert path.is_relative_to(tmp_path / "home")
    assert (path / "model.safetensors").exists()
    assert result.stderr == ""


def test_two_at_once(hub_with_model, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: resolve("org/model", tmp_path), range(4)))
    assert len(set(found)) == 1


IMAGE_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": [None, None],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
IMAGE_FILES = {
    "model_index.json": json.dumps(IMAGE_INDEX).encode(),
    "README.md": b"hello",
    "v1-5-pruned.safetensors": bytes(1000),
    "v1-5-pruned.ckpt": bytes(1000),
    "feature_extractor/preprocessor_config.json": b"{}",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": bytes(1000),
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": bytes(1000),
    "text_encoder/pytorch_model.bin": bytes(1000),
    "tokenizer/tokenizer_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.bin": bytes(1000),
    "unet/diffusion_pytorch_model.fp16.safetensors": bytes(1000),
    "unet/diffusion_pytorch_model.non_ema.safetensors": bytes(1000),
    "unet/diffusion_pytorch_model.safetensors": bytes(1000),
    "unet/openvino/config.json": b"{}",
}


def test_an_image_model_comes_once_and_without_pickles(local_hub, tmp_path):
    local_hub.repos["org/draw"] = IMAGE_FILES
    checkpoint = resolve("org/draw", tmp_path)
    assert (checkpoint.layout, checkpoint.name) == ("diffusers", "org/draw")
    files = [p for p in checkpoint.path.rglob("*") if p.is_file()]
    assert sorted(p.relative_to(checkpoint.path).as_posix() for p in files) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    num_requests = len(local_hub.requests)
    assert resolve("org/draw", tmp_path, offline=True) == checkpoint
    assert len(local_hub.requests) == num_requests


def test_one_file_of_an_image_model(local_hub, tmp_path):
    content = b"\x02" + bytes(7) + b"{}"
    local_hub.repos["org/draw"] = IMAGE_FILES | {"v1-5-pruned.safetensors": content}
    checkpoint = resolve("org/draw:v1-5-pruned.safetensors", tmp_path)
    assert (checkpoint.layout, checkpoint.name) == ("single_file", "v1-5-pruned")
    assert checkpoint.path.read_bytes() == content
    assert local_hub.asked("GET", "diffusion_pytorch_model.safetensors") == []


def test_an_image_model_with_pickles_is_refused(local_hub, tmp_path):
    local_hub.repos["org/draw"] = {
        name: data for name, data in IMAGE_FILES.items() if not name.startswith("unet/diff")
    } | {"unet/diffusion_pytorch_model.bin": b"1"}
    with pytest.raises(ModelLoadError, match="weights of its unet only as pickles"):
        resolve("org/draw", tmp_path)


@pytest.mark.parametrize("missing", [None, "unet/diff*", "tokenizer/*"])
def test_an_image_model_that_another_tool_fetched(local_hub, tmp_path, missing):
    local_hub.repos["org/draw"] = IMAGE_FILES
    snapshot_download("org/draw", ignore_patterns=missing)
    if missing is None:
        assert resolve("org/draw", tmp_path, offline=True).layout == "diffusers"
    else:
        with pytest.raises(ModelNotFound):
            resolve("org/draw", tmp_path, offline=True)


PEFT = {
    "README.md": b"hello",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(3000),
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(3000),
}
"""An adapter beside what serves no purpose for it."""


def adapter(ref: str, tmp_path: Path, **options: Any) -> Path:
    return Path(resolve_adapter(ref, **usual(tmp_path), **options))


def test_an_adapter_is_fetched_once(local_hub, tmp_path):
    local_hub.repos["org/poet"] = PEFT
    folder = adapter("org/poet", tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    num_requests = len(local_hub.requests)
    assert adapter("org/poet", tmp_path) == folder
    assert adapter("org/poet", tmp_path, offline=True) == folder
    assert len(local_hub.requests) == num_requests


@pytest.mark.parametrize(
    ("files", "ref", "wanted"),
    [
        ({"pytorch_lora_weights.safetensors": b"1", "x.safetensors": b"2"}, "", None),
        ({"ink.safetensors": b"1", "ink.png": b"2"}, "", None),
        ({"a.safetensors": b"1", "b.safetensors": b"2"}, ":b.safetensors", "b.safetensors"),
        ({"v1/a.safetensors": b"1"}, "@v1:v1/a.safetensors", "v1/a.safetensors"),
    ],
)
def test_files_of_image_adapters(files, ref, wanted, local_hub, tmp_path):
    local_hub.repos["org/ink"] = files
    place = adapter(f"org/ink{ref}", tmp_path)
    if wanted is not None:
        assert place.read_bytes() == files[wanted]
    else:
        assert len(list(place.iterdir())) == 1


@pytest.mark.parametrize(
    ("files", "ref", "error", "words"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"1"}, "", ModelLoadError, "pickles"),
        ({"README.md": b"1"}, "", ModelLoadError, "name the repository of a LoRA adapter"),
        ({"a.safetensors": b"1", "b.safetensors": b"2"}, "", ModelNotFound, "org/x:a.safetensors"),
        ({"a.safetensors": b"1"}, ":c.safetensors", ModelNotFound, "no .safetensors file 'c"),
        ({"a.gguf": b"1"}, ":a.gguf", ModelNotFound, "no .safetensors file"),
    ],
)
def test_adapters_that_cannot_be_had(files, ref, error, words, local_hub, tmp_path):
    local_hub.repos["org/x"] = files
    with pytest.raises(error, match=words):
        adapter(f"org/x{ref}", tmp_path)


def test_an_adapter_that_is_not_here_and_no_network(local_hub, tmp_path):
    with pytest.raises(ModelNotFound, match="org/poet is not in the cache and offline mode is on"):
        adapter("org/poet", tmp_path, offline=True)
    assert not local_hub.requests
    for local in (str(tmp_path), "no such folder", "./org/poet"):
        assert adapter(local, tmp_path, offline=True) == Path(local)
