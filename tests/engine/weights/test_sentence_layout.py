"""What sentence-transformers' files say, and what becomes of files that say something else."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import PoolingType

from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.embedding.embedders import load_embedder
from engine.errors import CorruptFile, ModelLoadError, UnsupportedArchitecture
from engine.weights.sentence_layout import (
    SentenceLayout,
    has_sentence_layout,
    read_gguf_layout,
    read_sentence_layout,
)
from tests.helpers.host import Host
from tests.helpers.models.checkpoints import in_gguf
from tests.helpers.models.tiny_encoders import add_sentence_layout


def write(folder: Path, name: str, value: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_what_it_writes_is_read(pooling, normalizes, tmp_path):
    add_sentence_layout(tmp_path, pooling, normalizes=normalizes, max_tokens=99)
    assert has_sentence_layout(tmp_path)
    assert read_sentence_layout(tmp_path) == SentenceLayout(
        pooling=pooling, normalizes=normalizes, max_tokens=99
    )


@pytest.mark.parametrize(
    ("stated", "pooling"), [("lasttoken", "last"), (["cls"], "cls"), ("mean", "mean")]
)
def test_newer_files_name_the_pooling(stated, pooling, tmp_path):
    add_sentence_layout(tmp_path, "max")
    write(tmp_path, "1_Pooling/config.json", {"pooling_mode": stated})
    assert read_sentence_layout(tmp_path).pooling == pooling


def test_a_folder_without_it_is_pooled_by_default_and_normalised(tmp_path):
    assert not has_sentence_layout(tmp_path)
    assert read_sentence_layout(tmp_path) == SentenceLayout()
    assert read_sentence_layout(tmp_path, "last").pooling == "last"
    assert read_sentence_layout(tmp_path).normalizes


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("modules.json", "{", CorruptFile, "modules.json is not valid JSON"),
        ("modules.json", {}, CorruptFile, "modules.json is not a JSON array"),
        ("modules.json", [3], CorruptFile, "a step without a folder or a type"),
        ("modules.json", [{"path": "../x", "type": "a.Pooling"}], CorruptFile, "a step without"),
        (
            "modules.json",
            [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}],
            UnsupportedArchitecture,
            "a step 'Dense'; only Transformer, Pooling and Normalize are supported",
        ),
        ("1_Pooling/config.json", {}, UnsupportedArchitecture, "pooling by nothing"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            UnsupportedArchitecture,
            "pooling by cls and mean is not supported; it must be one of mean, cls, max, last",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_weightedmean_tokens": True},
            UnsupportedArchitecture,
            "pooling by weightedmean_tokens",
        ),
        ("sentence_bert_config.json", {"max_seq_length": "all"}, ModelLoadError, "max_seq_length"),
    ],
)
def test_other_files_are_refused_by_name(name, value, error, words, tmp_path):
    add_sentence_layout(tmp_path, "mean")
    write(tmp_path, name, value)
    with pytest.raises(error, match=words):
        read_sentence_layout(tmp_path)


@pytest.mark.parametrize(
    ("stated", "pooling"),
    [(None, "last"), *((int(one), one.name.lower()) for one in list(PoolingType)[1:4])],
)
def test_gguf_files_state_the_pooling(stated, pooling, tiny_qwen2, make_gguf):
    path = make_gguf(tiny_qwen2(), "qwen2", qwen2__pooling_type=stated)
    assert read_gguf_layout(path).pooling == pooling


@pytest.mark.parametrize("stated", [7, "mean", [1]])
def test_other_poolings_of_gguf_files_are_refused_by_name(stated, tiny_qwen2, make_gguf):
    path = make_gguf(tiny_qwen2(), "qwen2", qwen2__pooling_type=stated)
    with pytest.raises(UnsupportedArchitecture, match=r"qwen2\.pooling_type is"):
        read_gguf_layout(path)


def test_a_decoder_in_a_gguf_file_pools_as_it_states(tiny_qwen2, make_gguf):
    path = make_gguf(tiny_qwen2(), "qwen2", qwen2__pooling_type=int(PoolingType.MEAN))
    intent = EngineConfig(device="cpu", num_threads=1, kind="embedding")
    machine = MachineFacts(device="cpu", free_memory_bytes=1 << 34, num_cores=1)
    assert load_embedder(in_gguf(path), intent, machine, Host()).layout.pooling == "mean"
