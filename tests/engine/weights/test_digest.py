"""Digests of the files that models and adapters are made of."""

import hashlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch

from engine.contract.settings import EngineConfig
from engine.errors import CorruptFile, ModelLoadError
from engine.weights import digest
from engine.weights.digest import PendingDigest, digest_of, model_files
from engine.weights.source import Checkpoint
from engine.worker import loop
from engine.worker.messages import WorkerSpec
from kernels import cache_folder
from server.text.reply import ReplyHead
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.host import Host


def change_one_weight(file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    weight = random.choice(list(tensors.values()))
    weight.view(-1)[random.randrange(weight.numel())] += 1
    safetensors.torch.save_file(tensors, file)


def digest_now(checkpoint: Checkpoint, memory: Path) -> str:
    return PendingDigest(checkpoint, memory).result()


@pytest.fixture
def folder(tiny_llama, tmp_path):
    path = tiny_llama(seed=random.randrange(1 << 16))
    return Checkpoint("folder", shutil.copytree(path, tmp_path / "model"), "m")


def test_any_weight_and_any_text_counts_and_the_place_does_not(folder, tmp_path):
    first = digest_now(folder, tmp_path)
    copy = Checkpoint("folder", shutil.copytree(folder.path, tmp_path / "elsewhere"), "other")
    assert digest_now(copy, tmp_path) == first
    (copy.path / "tandem_quality.json").write_text("{}")
    (copy.path / "README.md").write_text("about it")
    assert digest_now(copy, tmp_path) == first
    change_one_weight(copy.path / "model.safetensors")
    second = digest_now(copy, tmp_path)
    (copy.path / "chat_template.jinja").write_text("{{ messages }}")
    assert len({first, second, digest_now(copy, tmp_path)}) == 3


def test_it_is_what_sha256sum_prints(folder, tmp_path):
    files = sorted(model_files(folder))
    assert {"config.json", "model.safetensors"} <= set(files)
    listed = subprocess.run(
        ["sha256sum", *files], cwd=folder.path, capture_output=True, check=True
    ).stdout
    assert digest_now(folder, tmp_path) == hashlib.sha256(listed).hexdigest()
    file = tmp_path / "net.onnx"
    file.write_bytes(random.randbytes(random.randrange(1, 3000)))
    own = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest_now(Checkpoint("onnx", file, "net"), tmp_path) == own


def test_components_that_are_not_served_do_not_count(tmp_path):
    model = tmp_path / "model"
    for name in ("unet", "safety_checker"):
        (model / name).mkdir(parents=True)
        (model / name / "model.safetensors").write_bytes(random.randbytes(20))
    (model / "model_index.json").write_text("{}")
    found = model_files(Checkpoint("diffusers", model, "m"))
    assert sorted(found) == ["model_index.json", "unet/model.safetensors"]


def test_a_large_file_is_hashed_again_once_it_was_written_to(tmp_path, monkeypatch):
    hashed = []
    whole = digest._hashed
    monkeypatch.setattr(digest, "_LARGE_BYTES", 1)
    monkeypatch.setattr(digest, "_SETTLED_NS", 0)
    monkeypatch.setattr(digest, "_hashed", lambda path: hashed.append(path) or whole(path))
    file, memory = tmp_path / "weights.gguf", tmp_path / "memory"
    file.write_bytes(b"GGUF" + random.randbytes(40))
    before = file.stat()
    first = digest_of({"0": file}, memory)
    assert (digest_of({"0": file}, memory), len(hashed)) == (first, 1)
    time.sleep(0.02)  # longer than a file system's clock stands still
    # Neither its size nor its time tells that it is another one.
    file.write_bytes(b"GGUF" + random.randbytes(40))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = digest_of({"0": file}, memory)
    assert (second == first, len(hashed)) == (False, 2)
    for record in memory.iterdir():
        record.write_text("{")
    assert (digest_of({"0": file}, memory), len(hashed)) == (second, 3)


def test_files_that_change_while_they_are_loaded_are_refused(folder, tmp_path):
    os.utime(folder.path / "model.safetensors", (0, 0))
    pending = PendingDigest(folder, tmp_path)
    change_one_weight(folder.path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="changed while they were read"):
        pending.result()


def test_what_is_no_file_is_refused(tmp_path):
    pipe = tmp_path / "net.onnx"
    os.mkfifo(pipe)
    with pytest.raises(CorruptFile, match="a pipe"):
        digest_now(Checkpoint("onnx", pipe, "net"), tmp_path)


def test_a_workers_fingerprint_changes_with_one_weight(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "use_cache_folder", lambda folder: None)
    adapter = tmp_path / "adapter"
    write_adapter(folder.path, adapter, seed=random.randrange(1 << 16))

    def fingerprints():
        spec = WorkerSpec(
            address="",
            ref=str(folder.path),
            model="m",
            config=EngineConfig(lora=(f"poet={adapter}",), device="cpu", num_kv_blocks=8),
            cache_dir=str(tmp_path / "cache"),
            offline=True,
            cpu_isa="native",
            log_format="json",
            log_level="info",
            pulse_fd=-1,
        )
        engine, info = loop.load(spec, Link())
        engine.shutdown()
        named = [info.named(name) for name in ("m", "poet")]
        return [ReplyHead.create("x", one).system_fingerprint for one in named]

    first = fingerprints()
    assert fingerprints() == first
    change_one_weight(adapter / "adapter_model.safetensors")
    second = fingerprints()
    assert (second[0], second[1] != first[1]) == (first[0], True)
    change_one_weight(folder.path / "model.safetensors")
    third = fingerprints()
    assert third[0] != first[0] and third[1] != second[1]


class Link(Host):
    """A worker's, which nobody listens to."""

    def send(self, message):
        pass
