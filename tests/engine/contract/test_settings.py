"""The operator's settings, and what they are resolved to."""

import random
from dataclasses import fields, replace

import pytest

from engine.contract.kinds import KINDS
from engine.contract.resolved_config import AUTO_STEP_RATIO, MachineFacts, ModelFacts, resolve
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory, InvalidParameter, ModelLoadError
from engine.quantization.choice import resolve_quantization

NUMBERS = [
    (f.name, bound, step)
    for f in fields(EngineConfig)
    for bound, step in ((f.metadata["ge"], -1), (f.metadata["le"], 1))
    if bound is not None
]


def on(device):
    return MachineFacts(device=device, num_cores=2, free_memory_bytes=1 << 30)


MODEL = ModelFacts(max_position_embeddings=64, kv_bytes_per_token=8, weight_bytes=1000)


@pytest.mark.parametrize(("name", "bound", "step"), NUMBERS)
def test_numbers_out_of_bounds_are_refused(name, bound, step):
    for kind in KINDS.values():
        if name in {f.name for f in fields(kind.settings)}:
            with pytest.raises(InvalidParameter, match=f"^{name} is .*it must be "):
                kind.settings(**{name: bound + step})


def test_an_engine_receives_its_own_settings_only():
    config = EngineConfig(device="cpu", lora=("a=./a",), max_num_seqs=3, max_num_images=5)
    received = {name: config.of(kind.settings) for name, kind in KINDS.items()}
    for settings in received.values():
        assert settings.device == "cpu"
        assert not hasattr(settings, "image_share"), "a setting of all models together"
    text, image = received["text"], received["image"]
    assert text.adapters == image.adapters == {"a": "./a"}
    assert (text.max_num_seqs, image.max_num_images) == (3, 5)
    assert not hasattr(text, "max_num_images") and not hasattr(image, "max_num_seqs")
    for name in ("embedding", "upscale", "matting"):
        assert not hasattr(received[name], "lora")


@pytest.mark.parametrize(
    ("asked", "device", "is_async"),
    [("auto", "cpu", False), ("auto", "cuda", True), ("on", "cpu", True), ("off", "cuda", False)],
)
def test_scheduling_is_asynchronous_where_there_is_something_to_overlap(asked, device, is_async):
    resolved = resolve(EngineConfig(async_scheduling=asked), MODEL, on(device))
    assert resolved.async_scheduling == is_async


@pytest.mark.parametrize(
    ("asked", "device", "step_ms", "ratio"),
    [
        (None, "cpu", 0.0, AUTO_STEP_RATIO),
        (None, "cuda", 0.0, 0.0),
        (0.0, "cpu", 0.0, 0.0),
        (80.0, "cpu", 80.0, 0.0),
        (80.0, "cuda", 80.0, 0.0),
    ],
)
def test_steps_have_one_target_or_none(asked, device, step_ms, ratio):
    resolved = resolve(EngineConfig(max_step_ms=asked), MODEL, on(device))
    assert (resolved.max_step_ms, resolved.max_step_ratio) == (step_ms, ratio)


@pytest.mark.parametrize(
    ("num_seqs", "num_drafts", "budget", "num_rows"),
    [(64, 8, 512, 64), (1, 8, 512, 9), (1, 8, 4, 4), (64, 0, 16, 16)],
)
def test_rows_of_a_step_of_decodes(num_seqs, num_drafts, budget, num_rows):
    intent = EngineConfig(
        max_num_seqs=num_seqs, num_speculative_tokens=num_drafts, max_num_batched_tokens=budget
    )
    assert resolve(intent, MODEL, on("cpu")).max_decode_rows == num_rows


@pytest.mark.parametrize(
    ("asked", "draft", "device", "recurrent_bytes", "num_drafts"),
    [
        (None, None, "cpu", 0, 8),
        (None, None, "cpu", 100, 0),
        (None, None, "cuda", 0, 0),
        (None, "m", "cuda", 100, 8),
        (3, None, "cuda", 100, 3),
        (0, None, "cpu", 0, 0),
    ],
)
def test_tokens_are_guessed_where_guesses_cost_only_rows(
    asked, draft, device, recurrent_bytes, num_drafts
):
    intent = EngineConfig(num_speculative_tokens=asked, speculative_model=draft)
    model = replace(MODEL, recurrent_bytes=recurrent_bytes)
    assert resolve(intent, model, on(device)).num_speculative_tokens == num_drafts


def test_n_grams_have_a_length():
    intent = EngineConfig(prompt_lookup_min=5, prompt_lookup_max=4)
    words = "prompt_lookup_min is 5; it must be at most prompt_lookup_max"
    with pytest.raises(InvalidParameter, match=words):
        resolve(intent, MODEL, on("cpu"))


@pytest.mark.parametrize("asked", [True, False])
def test_steps_are_recorded_unless_told_otherwise(asked):
    for device in ("cpu", "cuda"):
        assert resolve(EngineConfig(), MODEL, on(device)).record_steps
        assert resolve(EngineConfig(record_steps=asked), MODEL, on(device)).record_steps == asked


@pytest.mark.parametrize(
    ("wanted", "device", "is_packed", "has_native"),
    [
        ("gguf", "cpu", True, True),
        ("gguf", "cuda", True, False),
        ("gguf-int8", "cpu", True, True),
        ("int8", "cpu", False, True),
        ("none", "cpu", True, False),
    ],
)
def test_linear_layers_are_kept_as_asked(wanted, device, is_packed, has_native):
    facts = {"stored": "gguf" if is_packed else None, "has_native": has_native}
    assert resolve_quantization(wanted, device, **facts) == wanted
    assert resolve(EngineConfig(quantization=wanted), MODEL, on(device)).quantization == wanted


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("has_native", [True, False])
def test_packed_weights_stay_packed_where_that_costs_nothing(device, is_packed, has_native):
    facts = {"stored": "gguf" if is_packed else None, "has_native": has_native}
    expected = "gguf" if is_packed and has_native else "none"
    assert resolve_quantization("auto", device, **facts) == expected
    assert resolve_quantization("auto", device, **facts, prefers_plain=True) == "none"


@pytest.mark.parametrize(
    ("wanted", "device", "is_packed", "has_native", "reason"),
    [
        ("gguf-int8", "cpu", False, True, "no weights packed"),
        ("gguf-int8", "cuda", True, True, "CPUs only"),
        ("gguf", "cpu", False, True, "no weights packed"),
        ("gguf", "cpu", True, False, "C[+][+] operations"),
        ("int8", "cpu", True, False, "C[+][+] operations"),
        ("int8", "cuda", True, True, "CPUs only"),
    ],
)
def test_what_cannot_be_kept_as_asked_is_an_error(wanted, device, is_packed, has_native, reason):
    with pytest.raises(ModelLoadError, match=f"quantization {wanted}.*{reason}"):
        resolve_quantization(
            wanted, device, stored="gguf" if is_packed else None, has_native=has_native
        )


def test_a_sliding_model_needs_blocks_for_its_windows_only():
    """One group looks back at all, two at 100 tokens: a request of 1000 tokens fits into 63 blocks
    and twice the window with one step's tokens."""
    model = ModelFacts(
        max_position_embeddings=1000,
        kv_bytes_per_token=8,
        weight_bytes=0,
        kv_windows=(100, None, 100),
    )
    machine = on("cpu")
    intent = EngineConfig(max_num_batched_tokens=60, num_kv_blocks=85, async_scheduling="off")
    assert resolve(intent, model, machine).max_model_len == 1000
    intent = replace(intent, num_kv_blocks=84)
    assert resolve(intent, model, machine).max_model_len == 992
    with pytest.raises(InsufficientMemory, match=r"max_model_len 1000 needs 85.*lower .* to 992"):
        resolve(replace(intent, max_model_len=1000), model, machine)
    twice = replace(intent, async_scheduling="on")
    assert resolve(twice, model, machine).max_model_len < 992


@pytest.mark.parametrize(
    ("asked", "device", "quantization", "is_packed"),
    [
        ({}, "cpu", "gguf", True),
        ({}, "cpu", "none", False),
        ({}, "cuda", "gguf", False),
        ({"dtype": "float32"}, "cpu", "gguf", False),
        ({"lora_dtype": "model"}, "cpu", "gguf", False),
        ({"lora_dtype": "int8", "dtype": "float32"}, "cpu", "none", True),
    ],
)
def test_adapters_have_few_bits_where_the_model_has(asked, device, quantization, is_packed):
    assert EngineConfig(**asked).has_packed_adapters(device, quantization) is is_packed


def test_a_gpu_keeps_adapters_in_the_models_type():
    words = "int8, which works only on a CPU, and the model is on cuda"
    with pytest.raises(ModelLoadError, match=words):
        EngineConfig(lora_dtype="int8").has_packed_adapters("cuda", "gguf")


@pytest.mark.parametrize(
    ("asked", "device", "part"),
    [({}, "cpu", 8), ({}, "cuda", 1), ({"kv_transfer": "127.0.0.1"}, "cpu", 1)],
)
def test_idle_cached_blocks_fill_the_pool_unless_its_memory_is_shared(asked, device, part):
    blocks = random.randint(100, 1000)
    resolved = resolve(EngineConfig(num_kv_blocks=blocks, **asked), MODEL, on(device))
    assert resolved.max_idle_cached_blocks == blocks // part


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_replicas_share_the_pool_and_the_cores_that_one_worker_would_have(device):
    wanted = "cuda:0" if device == "cuda" else "cpu"
    whole = resolve(EngineConfig(device=wanted), MODEL, on(device))
    shared = resolve(EngineConfig(device=wanted, replicas=4), MODEL, on(device))
    assert shared.num_kv_blocks == pytest.approx(whole.num_kv_blocks / 4, rel=0.01)
    own = EngineConfig(device=wanted, replicas=4, kv_cache_memory_gib=0.01)
    assert resolve(own, MODEL, on(device)).num_kv_blocks == (1 << 30) // 100 // (8 * 16)
    assert EngineConfig(replicas=4).with_share_of(10).num_threads == 2
    assert EngineConfig(replicas=4).with_share_of(1).num_threads == 1
    assert EngineConfig(replicas=4, num_threads=9).with_share_of(10).num_threads == 9
    assert EngineConfig().with_share_of(10).num_threads is None


def test_replicas_with_a_gpu_each_share_nothing():
    alone = resolve(EngineConfig(device="cuda"), MODEL, on("cuda"))
    beside = resolve(EngineConfig(device="cuda", replicas=4), MODEL, on("cuda"))
    assert beside.num_kv_blocks == alone.num_kv_blocks
