"""Plans against what engines resolve and hold, and against arithmetic done by hand."""

import json
import math
import random
import struct
from dataclasses import replace

import pytest
import torch

from engine.contract.knob import GIB
from engine.contract.kv_numbers import KvNumbers
from engine.contract.resolved_config import MachineFacts, pool_bytes, resolve
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory, InvalidParameter
from engine.llm.runner.kv_storage import KvStorage
from engine.llm.start.memory_plan import MemoryPlan
from engine.planning.chips import CHIPS, chip_named
from engine.planning.draft import plan_draft
from engine.planning.facts import text_facts
from engine.planning.plain_text import plan_table
from engine.planning.report import Target
from engine.planning.text import plan
from engine.runtime.device import PACKED_KV_DTYPES, torch_dtype
from engine.weights.loader import load_model_config
from engine.weights.weight_plan import plan_weights
from tests.helpers.host import Host
from tests.helpers.models.checkpoints import in_folder

LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def target(on="cuda", free=20 * GIB, **changes):
    machine = MachineFacts(device=on, num_cores=2, free_memory_bytes=free)
    return Target(**({"machine": machine, "process_bytes": 0, "device": "it"} | changes))


def write_headers(folder, config):
    """A checkpoint of a real size without a single weight: a sparse file behind its header."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    vocab = config["vocab_size"]
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (heads, hidden),
                "self_attn.k_proj": (kv, hidden),
                "self_attn.v_proj": (kv, hidden),
                "self_attn.o_proj": (hidden, heads),
                **mlp_shapes(config),
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
            }.items()
        }
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    data = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + at)
    (folder / "config.json").write_text(json.dumps(config))
    return in_folder(folder), at


def mlp_shapes(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    num_experts = config.get("num_local_experts")
    if num_experts is None:
        inside, outside = ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)
        return dict.fromkeys(inside, (inner, hidden)) | dict.fromkeys(outside, (hidden, inner))
    moe, gate, up, down = "block_sparse_moe", "w1", "w3", "w2"
    if config["model_type"] == "qwen3_moe":
        moe, gate, up, down = "mlp", "gate_proj", "up_proj", "down_proj"
        inner = config["moe_intermediate_size"]
    found = {f"{moe}.gate": (num_experts, hidden)}
    for expert in range(num_experts):
        one = f"{moe}.experts.{expert}"
        found |= {f"{one}.{gate}": (inner, hidden), f"{one}.{up}": (inner, hidden)}
        found[f"{one}.{down}"] = (hidden, inner)
    return found


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return write_headers(tmp_path_factory.mktemp("llama3"), LLAMA3)


def rows_of(report):
    return {(row.quantization, row.kv_cache_dtype): row for row in report.rows}


def test_an_8b_model_on_an_h100(llama3):
    """Computed by hand: 8.03e9 numbers of two bytes, 128 KiB per cached token, 3.35 TB/s."""
    checkpoint, num_bytes = llama3
    chip = CHIPS["h100"]
    report = plan(checkpoint, EngineConfig(), target(free=79 * GIB, chip=chip, context=8192))
    row = rows_of(report)["none", "bfloat16"]
    assert row.weight_bytes == num_bytes == 2 * 8_030_261_248
    assert row.kv_bytes == 8192 * 128 * 1024
    read = num_bytes - 2 * 128256 * 4096 + row.kv_bytes
    assert row.decode_tokens_per_s == pytest.approx(3.35e12 / read, rel=1e-6)
    layers = 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    per_token = 2 * layers + 4 * 32 * 4096 * 4096  # half the context is seen on average
    assert row.prefill_tokens_per_s == pytest.approx(989e12 / per_token, rel=1e-6)
    left = int(79 * GIB * 0.9) - row.weight_bytes - row.step_bytes
    assert row.max_tokens == left // (16 * 128 * 1024) * 16
    assert row.fits and row.flags == []


def test_a_packed_cache_takes_half_and_its_scales(llama3):
    report = plan(llama3[0], EngineConfig(), target(free=79 * GIB, context=4096))
    rows = rows_of(report)
    plain, packed = rows["none", "bfloat16"], rows["none", "int8"]
    assert packed.kv_bytes / plain.kv_bytes == pytest.approx((128 + 4) / 256)
    assert packed.max_tokens / plain.max_tokens == pytest.approx(256 / 132, rel=1e-3)
    assert packed.flags == ["--kv-cache-dtype int8"]
    assert packed.decode_tokens_per_s is None


def test_many_texts_are_bounded_by_products(llama3):
    chip = chip_named("L4")
    wanted = target(free=200 * GIB, chip=chip, concurrency=4000, context=16)
    row = rows_of(plan(llama3[0], EngineConfig(), wanted))["none", "bfloat16"]
    per_token = 2 * (8_030_261_248 - 128256 * 4096 - 65 * 4096) + 4 * 32 * 4096 * 16
    assert row.decode_tokens_per_s == pytest.approx(chip.flops / per_token, rel=1e-3)
    assert "--max-num-seqs 4000" in row.flags


def test_experts_that_nobody_chose_are_neither_read_nor_multiplied(tmp_path):
    """2 of 8 for each token: with many texts nearly all are read, and each token pays for its 2."""
    config = LLAMA3 | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_hidden_layers": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    checkpoint, _ = write_headers(tmp_path, config)
    chip = CHIPS["h100"]
    found = {}
    for texts in (1, 64):
        wanted = target(free=70 * GIB, chip=chip, concurrency=texts, context=1)
        found[texts] = rows_of(plan(checkpoint, EngineConfig(), wanted))["none", "bfloat16"]
    expert, hidden = 3 * 4096 * 14336, 4096
    attention = 2 * (2 * hidden * hidden + 2 * hidden * 1024 + 8 * hidden)
    head = 128256 * hidden
    for texts, row in found.items():
        experts = 16 * expert * (1 - 0.75**texts)
        read = 2 * (experts + attention + head)
        wanted = texts * chip.bytes_per_s / read
        assert row.decode_tokens_per_s == pytest.approx(wanted, rel=1e-3)
        assert row.read_bytes == pytest.approx(read, rel=1e-3)
    multiplied = 2 * (4 * expert + attention)
    assert found[1].prefill_tokens_per_s == pytest.approx(chip.flops / multiplied, rel=1e-3)


QWEN3_30B = LLAMA3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "num_local_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}


def test_what_a_mixture_has_and_what_a_token_meets(tmp_path):
    """Qwen3-30B-A3B: 30.5 billion parameters, 3.3 of them active, as its page says."""
    checkpoint, _ = write_headers(tmp_path, QWEN3_30B)
    wanted = target(free=70 * GIB, chip=CHIPS["h100"], concurrency=16, context=100)
    report = plan(checkpoint, EngineConfig(), wanted)
    experts = report.experts
    assert (experts.per_layer, experts.per_token) == (128, 8)
    assert experts.per_step == pytest.approx(128 * (1 - (15 / 16) ** 16))
    assert experts.parameters == pytest.approx(30.53e9, rel=1e-3)
    assert experts.active_parameters == pytest.approx(3.35e9, rel=1e-2)
    text = plan_table(report.as_json())
    assert "30.5 B parameters" in text and "8 of 128 experts" in text and "82.4 of them" in text
    rows = rows_of(report)
    # With int4 the output layer has 8.5 bits: experts that are not read count with their own.
    for name, bits in (("none", 16), ("int4", 5)):
        row = rows[name, "bfloat16"]
        each = 48 * 3 * 2048 * 768 * bits / 8
        unread = 128 - experts.per_step
        embedding = 2 * 151936 * 2048
        saved = row.weight_bytes - row.read_bytes - embedding
        assert saved == pytest.approx(unread * each, rel=1e-3)


def test_a_model_without_experts_says_nothing_of_them(llama3):
    report = plan(llama3[0], EngineConfig(), target(context=100))
    assert report.experts is None
    text = plan_table(report.as_json())
    assert "experts" not in text and " read " not in text


def test_a_step_holds_the_rows_of_all_experts(tmp_path):
    checkpoint, _ = write_headers(tmp_path, QWEN3_30B | {"num_hidden_layers": 2})
    intent = EngineConfig(max_num_batched_tokens=512, max_num_seqs=1)
    [row, *_] = plan(checkpoint, intent, target(free=70 * GIB, context=100)).rows
    assert row.step_bytes > 512 * 8 * (2048 + 3 * 768) * 2


def engine_config(intent, flags):
    """The configuration that these flags of `tandem serve` make."""
    changes = {}
    for flag in flags:
        name, value = flag.removeprefix("--").split(" ")
        name = name.replace("-", "_")
        changes[name] = {"kv_cache_memory_gib": float, "max_num_seqs": int}.get(name, str)(value)
    return EngineConfig(**{"device": intent.device, **changes})


def test_what_fits_is_what_an_engine_can_hold(llama3, tiny_gemma3, tiny_gemma4, tiny_mamba2):
    """Whatever memory there is: the flags of a row that fits make room for all the texts, and
    nobody finds room where a row does not fit."""
    folders = [llama3[0], *(in_folder(one()) for one in (tiny_gemma3, tiny_gemma4, tiny_mamba2))]
    for _ in range(25):
        checkpoint = random.choice(folders)
        is_large = checkpoint is folders[0]
        free = int(random.uniform(1, 60) * GIB) if is_large else random.randrange(1 << 18, 64 << 20)
        context = random.randrange(1, 8193 if is_large else 513)
        concurrency = random.randrange(1, 200)
        intent = EngineConfig(device="cpu")
        wanted = target("cuda", free, concurrency=concurrency, context=context)
        for row in plan(checkpoint, intent, wanted).rows:
            assert row.fits == (row.max_tokens // context >= concurrency)
            config = load_model_config(checkpoint)
            asked = engine_config(intent, row.flags)
            kept = plan_weights(checkpoint, config, asked, wanted.machine)
            facts = replace(text_facts(kept, config, asked), step_bytes=row.step_bytes)
            try:
                resolved = resolve(asked, facts, wanted.machine)
            except InsufficientMemory:
                assert not row.fits
                continue
            needed = resolved.kv_layout(config.group_windows).most_blocks(context) * concurrency
            if row.fits:
                assert resolved.num_kv_blocks >= needed
                assert asked.max_num_seqs >= concurrency


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8", "fp8"])
@pytest.mark.parametrize("family", ["tiny_gemma3", "tiny_gemma4", "tiny_mamba"])
def test_cache_bytes_are_those_of_the_storage(family, dtype, request):
    config = load_model_config(in_folder(request.getfixturevalue(family)()))
    storage = KvStorage(
        num_blocks=3,
        layer_groups=config.layer_groups,
        block_size=16,
        dtype=PACKED_KV_DTYPES.get(dtype) or torch_dtype(dtype),
        device=torch.device("cpu"),
    )
    assert storage._pool.nbytes == 3 * 16 * config.kv_bytes_per_token(KvNumbers(dtype))


def test_recurrent_states_of_all_planned_texts_are_counted(tiny_mamba2):
    checkpoint = in_folder(tiny_mamba2())
    config = load_model_config(checkpoint)
    chip = CHIPS["h100"]
    wanted = target("cuda", GIB, context=300, chip=chip)
    rows = [
        plan(checkpoint, EngineConfig(max_num_seqs=8), replace(wanted, concurrency=texts)).rows[0]
        for texts in (1, 8, 20)
    ]
    assert [row.kv_bytes for row in rows] == [0, 0, 0]
    assert [row.max_tokens for row in rows] == [2400, 2400, 6000]
    of_text = 2 * config.recurrent_bytes(2)
    read = rows[2].read_bytes + 20 * of_text
    assert rows[2].decode_tokens_per_s == pytest.approx(20 * chip.bytes_per_s / read, rel=1e-3)
    assert rows[2].weight_bytes - rows[1].weight_bytes == 12 * of_text
    assert rows[1].weight_bytes == rows[0].weight_bytes > 8 * of_text


@pytest.mark.parametrize(("on", "caches"), [("cpu", {"float32", "int8"}), ("cuda", {"float32"})])
def test_large_heads_have_no_packed_cache_on_a_gpu(tiny_gemma4, on, caches):
    checkpoint = in_folder(tiny_gemma4(global_head_dim=512))
    report = plan(checkpoint, EngineConfig(dtype="float32"), target(on, GIB, context=100))
    assert {row.kv_cache_dtype for row in report.rows} == caches


@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_a_draft_model_is_counted(tiny_gemma3, tiny_llama, on):
    """The plan and the load count its weights and a cache of as many tokens as the model's."""
    checkpoint, smaller = in_folder(tiny_gemma3()), in_folder(tiny_llama())
    intent = EngineConfig(
        dtype="float32",
        quantization="none",
        speculative_model=str(smaller.path),
        num_speculative_tokens=4,
    )
    wanted = target(on, 8 * GIB, concurrency=2, context=256)
    rows = [
        rows_of(plan(checkpoint, one, wanted))["none", "float32"]
        for one in (intent, replace(intent, speculative_model=None))
    ]
    weights = plan_weights(smaller, load_model_config(smaller), intent, wanted.machine)
    assert rows[0].weight_bytes - rows[1].weight_bytes == weights.num_bytes(4)
    model_config = load_model_config(checkpoint)
    draft = plan_draft(checkpoint, model_config, intent, wanted.machine)
    kept = plan_weights(checkpoint, model_config, intent, wanted.machine)
    facts = text_facts(kept, model_config, intent)
    memory = MemoryPlan(intent, facts, wanted.machine).with_draft(draft, Host())
    resolved = memory.resolved()
    own = draft.num_kv_blocks(resolved.num_kv_blocks, model_config)
    num_bytes = resolved.num_kv_blocks * 16 * facts.kv_bytes_per_token
    num_bytes += own * 16 * draft.facts.kv_bytes_per_token
    assert num_bytes <= pool_bytes(intent, memory.model, memory.machine)
    num_groups = len(model_config.layer_groups)
    assert own == resolved.num_kv_blocks // num_groups, "as many tokens, in one group of layers"
    per_token = rows[0].kv_bytes / rows[1].kv_bytes
    assert per_token == pytest.approx(
        1 + draft.facts.kv_bytes_per_token / num_groups / facts.kv_bytes_per_token, rel=1e-3
    )


def test_memory_that_is_set_aside_for_adapters(llama3):
    """A rank of all linear layers has 32 layers of 81,920 numbers: 5 MiB."""
    intent = EngineConfig(max_loras=16, max_cpu_loras=200)
    wanted = target(free=40 * GIB, context=4096)
    without = plan(llama3[0], EngineConfig(), wanted)
    assert without.adapters is None and "adapters" not in plan_table(without.as_json())
    report = plan(llama3[0], intent, wanted)
    assert (report.adapters.rank_bytes, report.adapters.held_bytes) == (5 << 20, 0)
    text = plan_table(report.as_json())
    assert "LoRA adapters: 16 of 200 can be used in one step." in text
    assert "Each rank of an adapter for all linear layers takes 5.0 MiB" in text
    assert "with rank 16, 16 take 1.25 GiB" in text
    limited = plan(llama3[0], replace(intent, lora_memory_gib=8.0), wanted)
    assert "--lora-memory-gib limits them to 8.00 GiB" in plan_table(limited.as_json())
    for row, plain in zip(limited.rows, without.rows, strict=True):
        assert (row.adapter_bytes, row.total_bytes) == (8 * GIB, plain.total_bytes + 8 * GIB)
        per_token = row.kv_bytes / 4096
        fewer = plain.max_tokens - row.max_tokens
        assert fewer == pytest.approx(8 * GIB / per_token, abs=16) or row.max_tokens == 0
    too_large = plan(llama3[0], replace(intent, lora_memory_gib=39.0), wanted)
    assert not any(row.fits for row in too_large.rows)


def test_on_a_cpu_a_large_pool_must_be_asked_for(tiny_llama):
    checkpoint = in_folder(tiny_llama(max_position_embeddings=1 << 16))
    wanted = target("cpu", 64 * GIB, concurrency=100, context=1 << 16)
    row = rows_of(plan(checkpoint, EngineConfig(dtype="float32"), wanted))["none", "float32"]
    assert row.fits
    [flag] = [flag for flag in row.flags if flag.startswith("--kv-cache-memory-gib")]
    asked = engine_config(EngineConfig(device="cpu"), [flag])
    assert 0 <= asked.kv_cache_memory_gib * GIB - row.kv_bytes < 0.011 * GIB


def test_a_context_that_the_model_does_not_take(llama3):
    with pytest.raises(InvalidParameter, match="at most 8192"):
        plan(llama3[0], EngineConfig(), target(context=8193))


def test_an_unknown_gpu_is_named_with_those_that_are_known():
    with pytest.raises(InvalidParameter, match=r"'b300'.*h100.*4090"):
        chip_named("b300")


def test_the_table_says_what_fits_and_how(llama3):
    chip = CHIPS["4090"]
    wanted = target(
        free=chip.memory_bytes - GIB, chip=chip, device=chip.title, concurrency=8, context=8192
    )
    lines = plan_table(plan(llama3[0], EngineConfig(), wanted).as_json()).splitlines()
    assert "RTX 4090" in lines[0] and "8 texts of 8192 tokens" in lines[0]
    head = next(line for line in lines if line.startswith("quantization"))
    assert head.split()[-2:] == ["decode", "prefill"]
    plain = [line.split() for line in lines if line.startswith("none (stored)")]
    assert [words[2] for words in plain] == ["bfloat16", "int8"]
    small = target(free=2 * GIB, context=8192)
    text = plan_table(plan(llama3[0], EngineConfig(), small).as_json())
    assert "Nothing fits" in text and "use a smaller model" in text
    tight = target(free=9 * GIB, concurrency=8, context=8192)
    text = plan_table(plan(llama3[0], EngineConfig(gpu_memory_utilization=1.0), tight).as_json())
    assert "--max-model-len" in text
