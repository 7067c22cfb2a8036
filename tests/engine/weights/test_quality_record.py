"""Records of measured quality: of these weights, kept this way, and of no others."""

import json
import random
import shutil
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from engine.contract.settings import EngineConfig
from engine.errors import ModelLoadError
from engine.llm.start import loading
from engine.weights.quality_record import measured_quality, read_record, record_path, save_quality
from engine.weights.source import Checkpoint
from tests.helpers.host import Host
from tests.helpers.quantization.measured_quality import KEPT, measured


@pytest.fixture
def checkpoint(tiny_llama):
    return Checkpoint("folder", tiny_llama(seed=random.randrange(1 << 16)), "m")


def test_a_record_holds_the_newest_measurement_of_each_way(checkpoint):
    assert read_record(checkpoint) == []
    first, other, newer = measured(0.1), measured(0.2, kv_cache_dtype="int8"), measured(0.3)
    for one in (first, other, newer):
        assert save_quality(checkpoint, one) == record_path(checkpoint)
    assert read_record(checkpoint) == [other, newer]
    assert measured_quality(checkpoint, KEPT) == newer
    assert measured_quality(checkpoint, replace(KEPT, quantization="int8")) is None
    assert [path.name for path in checkpoint.path.glob("*quality*")] == ["tandem_quality.json"]


def test_a_copy_has_the_record_and_other_weights_have_none(checkpoint, tiny_llama, tmp_path):
    save_quality(checkpoint, measured(0.1))
    copy = Checkpoint("folder", shutil.copytree(checkpoint.path, tmp_path / "copy"), "m")
    assert read_record(copy) == [measured(0.1)]
    weights = copy.path / "model.safetensors"
    shutil.copy(tiny_llama(seed=1 << 17) / weights.name, weights)
    with capture_logs() as logs:
        assert read_record(copy) == []
    assert "to other weights" in logs[0]["event"]
    save_quality(copy, measured(0.4))
    assert read_record(copy) == [measured(0.4)]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        "\x00",
        '{"weights": 1}',
        '{"measured": []}',
        '{"weights": "x", "measured": [{}]}',
    ],
)
def test_a_damaged_record_counts_for_nothing(checkpoint, content):
    record_path(checkpoint).write_text(content)
    assert read_record(checkpoint) == []
    save_quality(checkpoint, measured(0.1))
    found = json.loads(record_path(checkpoint).read_text())
    found["measured"][0]["kept"] = None
    record_path(checkpoint).write_text(json.dumps(found))
    with capture_logs() as logs:
        assert read_record(checkpoint) == []
    assert "cannot be read" in logs[0]["event"]


def test_a_file_has_its_record_beside_it(tmp_path):
    path = tmp_path / "m-00001-of-00002.gguf"
    for name in (path.name, "m-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(random.randbytes(100_000))
    checkpoint = Checkpoint("gguf", path, "m")
    save_quality(checkpoint, measured(0.1))
    assert record_path(checkpoint).name == "m-00001-of-00002.gguf.quality.json"
    assert read_record(checkpoint) == [measured(0.1)]
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(random.randbytes(100_000))
    assert read_record(checkpoint) == []


def loaded(checkpoint, **knobs):
    config = EngineConfig(device="cpu", dtype="float32", num_threads=1, num_kv_blocks=64, **knobs)
    with capture_logs() as logs:
        _, info = loading.load_engine(checkpoint, "m", config, Host())
    return info, [entry for entry in logs if entry["log_level"] == "warning"]


def test_a_model_that_is_far_from_its_original_is_warned_of_or_refused(checkpoint):
    assert loaded(checkpoint)[0].quality_kl is None
    _, warnings = loaded(checkpoint, max_kl=0.1)
    assert "nobody has measured" in warnings[0]["event"]
    save_quality(checkpoint, measured(0.25))
    save_quality(checkpoint, measured(0.05, kv_cache_dtype="int8"))
    info, warnings = loaded(checkpoint)
    assert info.quality_kl == 0.25
    assert warnings[0]["kl_divergence"] == 0.25 and "far from" in warnings[0]["event"]
    info, warnings = loaded(checkpoint, kv_cache_dtype="int8", max_kl=0.05)
    assert (info.quality_kl, warnings) == (0.05, [])
    with pytest.raises(ModelLoadError, match=r"divergence from original is 0\.2500") as caught:
        loaded(checkpoint, max_kl=0.2)
    assert caught.value.param == "max_kl"
