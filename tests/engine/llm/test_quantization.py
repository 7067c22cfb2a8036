"""Engines whose linear layers keep their weights in few bits, against those that unpack them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory, ModelLoadError
from engine.llm.start import sizing
from engine.models.layers.embedding import TokenEmbedding
from engine.models.layers.linear import Linear
from engine.models.layers.norm import RmsNorm
from engine.models.layers.parallel import TensorParallel
from engine.models.registry import create_model
from engine.quantization import panels as panels_format
from engine.quantization.panels import PanelsState
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.source import Checkpoint
from kernels import GGUFType, isa
from kernels.linear_gguf.cases import random_weight
from kernels.linear_panels.panels import unpack
from kernels.measured.product_times import ProductTimes
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.llm.packed_texts import CPU, plan_of, states_of

MIXED = {"attn_q": Type.Q4_0, "attn_v": Type.Q8_0, "ffn_down": Type.Q5_1}
"""The rest is Q4_1."""


@pytest.fixture
def write_gguf(tmp_path):
    """`write_gguf(folder, types)` → the Llama in a folder as a quantised GGUF file."""

    def write(folder: Path, types: dict[str, Type], default: Type = Type.Q4_1) -> Path:
        config = json.loads((folder / "config.json").read_text())
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, value in metadata(config).items():
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
        writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(config["vocab_size"])])
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
        for hf_name, weight in load_file(folder / "model.safetensors").items():
            name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
            rows = in_pairs(hf_name, weight, config).float().numpy()
            if rows.ndim == 1:
                writer.add_tensor(name, rows)
                continue
            kind = types.get(name.split(".")[-2], default)
            if kind == Type.IQ4_NL:  # The package reads it only.
                stored = random_weight(GGUFType.IQ4_NL, *rows.shape).numpy()
            else:
                stored = gguf.quants.quantize(rows, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def metadata(config):
    return {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def in_pairs(name, weight, config):
    """llama.cpp's order of the rows of q and k: the halves of a rotated pair side by side."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if key is None:
        return weight
    split = weight.unflatten(0, (config[key], 2, -1))
    return split.transpose(1, 2).reshape(weight.shape).contiguous()


def model_of(engine):
    return engine._executor._model


def linear_weights(engine):
    """Layer → weight in fp32, all its shards below one another."""
    found = {}
    for name, module in model_of(engine).named_modules():
        if isinstance(module, Linear):
            states = [state for _, state in module._parts]
            assert all(isinstance(state, PanelsState) for state in states), name
            found[name] = torch.cat([unpack(state.panels).dequantised() for state in states])
    return found


def plain_weights(path, kind="gguf"):
    """The same of the dequantised file."""
    checkpoint = Checkpoint(kind, path, "m")
    return dict(iter_weights(checkpoint, load_model_config(checkpoint)))


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_are_those_of_the_file(tied, engines, tiny_llama, write_gguf):
    folder = tiny_llama(seed=random.randrange(1000), tie_word_embeddings=tied)
    path = write_gguf(folder, MIXED | {"ffn_up": Type.IQ4_NL})
    engine = engines.make(path, quantization="gguf")
    plain = plain_weights(path)
    ours = linear_weights(engine)
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        for name, shards in {
            "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "self_attn.o_proj": ["self_attn.o_proj"],
            "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.down_proj": ["mlp.down_proj"],
        }.items():
            wanted = torch.cat([plain[f"{prefix}.{shard}.weight"] for shard in shards])
            torch.testing.assert_close(ours[f"{prefix}.{name}"], wanted, rtol=1e-6, atol=1e-7)
    head = model_of(engine).lm_head._state.panels
    wanted = plain["model.embed_tokens.weight" if tied else "lm_head.weight"]
    torch.testing.assert_close(unpack(head).dequantised(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1])
def test_a_file_of_4_bits_takes_less_than_two_fifths_of_16(kind, engines, tiny_llama, write_gguf):
    """All of the model: the matrix that is embedding and output layer is there once."""
    folder = tiny_llama(tie_word_embeddings=True)
    numbers = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    path = write_gguf(folder, {}, kind)
    model = model_of(engines.make(path, quantization="gguf", dtype="bfloat16"))
    resident = sum(state.panels.data.nbytes for state in states_of(model))
    others = [m for m in model.modules() if isinstance(m, RmsNorm | TokenEmbedding)]
    resident += sum(m.weight.nbytes for m in others if hasattr(m, "weight"))
    assert resident <= 0.4 * 2 * numbers


def test_matrices_of_16_bits_stay_as_they_are(engines, tiny_llama, write_gguf):
    types = {"attn_output": Type.F16, "ffn_down": Type.BF16}
    seed = random.randrange(1000)
    path = write_gguf(tiny_llama(seed=seed), types, Type.Q8_0)
    plan = plan_of(path, quantization="gguf")
    assert not [name for name in plan.layers if name.endswith(("o_proj", "down_proj"))]
    kept = {name.split(".")[-2]: weight.dtype for name, weight in plain_weights(path).items()}
    assert (kept["o_proj"], kept["down_proj"]) == (torch.float16, torch.bfloat16)
    packed = scores_of(engines, path, seed, quantization="gguf")
    plain = scores_of(engines, path, seed, quantization="none")
    assert (packed - plain).abs().mean() < 1e-5


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16])
def test_a_file_without_quantised_matrices_is_plain(kind, engines, tiny_llama, write_gguf):
    seed = random.randrange(1000)
    dtype = {Type.F16: "float16", Type.BF16: "bfloat16"}[kind]
    folder = tiny_llama(seed=seed, dtype=dtype, rms_norm_eps=2.0**-17)
    path = write_gguf(folder, {}, kind)
    assert plan_of(path).quantization == "none"
    assert torch.equal(scores_of(engines, path, seed), scores_of(engines, folder, seed))


def scores_of(engines, path, seed, adapter=None, **knobs):
    """Log-probabilities of the tokens of three random prompts."""
    engine = engines.make(path, **knobs)
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 60) for _ in range(length)] for length in (1, 16, 40)]
    requests = [
        engines.request(str(i), p, max_tokens=1, prompt_logprobs=0) for i, p in enumerate(prompts)
    ]
    done = engines.run(engine, [replace(request, adapter=adapter) for request in requests])
    return torch.tensor(
        [e.logprob for i in range(len(prompts)) for e in done[str(i), 0].prompt_logprobs if e]
    )


@pytest.mark.parametrize("tied", [False, True])
def test_packing_changes_no_bit_of_bf16(tied, engines, tiny_llama, write_gguf):
    if isa.packed_arithmetic(bf16=True, integers=True) != isa.Arithmetic.PAIRS:
        pytest.skip("packed weights are not rounded here")
    seed = random.randrange(1000)
    path = write_gguf(tiny_llama(seed=seed, tie_word_embeddings=tied), MIXED)
    packed = scores_of(engines, path, seed, dtype="bfloat16", quantization="gguf")
    plain = scores_of(engines, path, seed, dtype="bfloat16", quantization="none")
    assert torch.equal(packed, plain)


@pytest.mark.parametrize(
    ("dtype", "mean_error"), [("float32", 1e-5), ("float16", 6e-3), ("bfloat16", 5e-2)]
)
def test_packing_changes_scores_by_rounding_at_most(
    dtype, mean_error, engines, tiny_llama, write_gguf
):
    seed = random.randrange(1000)
    path = write_gguf(tiny_llama(seed=seed), MIXED)
    packed = scores_of(engines, path, seed, dtype=dtype, quantization="gguf")
    plain = scores_of(engines, path, seed, dtype=dtype, quantization="none")
    assert (packed - plain).abs().mean() < mean_error


@pytest.mark.parametrize("quantization", ["gguf-int8", "int8"])
def test_scores_stay_close_to_those_of_plain_weights(quantization, engines, tiny_llama, write_gguf):
    seed = random.randrange(1000)
    path = write_gguf(tiny_llama(seed=seed), {}, default=Type.Q8_0)
    plain = scores_of(engines, path, seed, quantization="none")
    error = (scores_of(engines, path, seed, quantization=quantization) - plain).abs()
    # Two per cent of rounding in each product; equal ones would mean that nothing was rounded.
    assert 0 < error.mean() < 0.1, error


@pytest.mark.parametrize("quantization", ["gguf", "gguf-int8", "int8"])
def test_text_does_not_depend_on_what_shares_the_step(
    quantization, engines, tiny_llama, write_gguf
):
    path = write_gguf(tiny_llama(seed=3), MIXED)
    prompts = [[random.randrange(2, 60) for _ in range(random.randrange(1, 50))] for _ in range(9)]
    requests = [
        engines.request(str(i), p, max_tokens=12, ignore_eos=True, logprobs=0)
        for i, p in enumerate(prompts)
    ]
    make = lambda: engines.make(path, quantization=quantization, max_num_batched_tokens=24)  # noqa: E731
    together = engines.run(make(), requests, arrivals=[random.randrange(10) for _ in requests])
    alone = make()
    for request in requests:
        (done,) = engines.run(alone, [request]).values()
        assert done.token_ids == together[request.request_id, 0].token_ids


@pytest.fixture
def measure(monkeypatch):
    """`measure(Q4_1=1.5)`: products with packed weights of a type take so many times as long as
    with plain ones; → the types that were asked for, by element type."""

    def pretend(**ratios):
        asked = []

        def product_times(types, dtype):
            asked.append((sorted(one.name for one in types), dtype))
            return {
                one: ProductTimes(
                    packed_s=(ratios[one.name],) * 3, plain_s=(1.0,) * 3, measured_at=0.0
                )
                for one in types
            }

        monkeypatch.setattr(panels_format, "product_times", product_times)
        return asked

    return pretend


@pytest.mark.parametrize(("ratio", "kept"), [(1.05, "gguf"), (1.15, "none")])
def test_weights_stay_packed_unless_that_is_slower(
    ratio, kept, engines, tiny_llama, write_gguf, measure
):
    asked = measure(Q4_1=ratio)
    engine = engines.make(write_gguf(tiny_llama(), {}), dtype="auto")
    assert engine._executor._config.quantization == kept
    state = model_of(engine).model.layers[0].mlp.down_proj._parts[0][1]
    assert isinstance(state, PanelsState) is (kept == "gguf")
    assert asked == [(["Q4_1"], torch.bfloat16)]


def test_types_count_by_their_weights(tiny_llama, write_gguf, measure):
    path = write_gguf(tiny_llama(tie_word_embeddings=True, vocab_size=64), MIXED)
    asked = measure(Q4_0=1.0, Q4_1=1.0, Q5_1=1.0, Q8_0=1.5)
    assert plan_of(path, dtype="float32").quantization == "gguf"  # attn_v alone is slower
    assert asked == [(["Q4_0", "Q4_1", "Q5_1", "Q8_0"], torch.float32)]
    measure(Q4_0=1.0, Q4_1=1.5, Q5_1=1.0, Q8_0=1.0)
    assert plan_of(path).quantization == "none"


def test_plain_weights_must_fit_with_as_much_to_spare(tiny_llama, write_gguf, measure):
    path = write_gguf(tiny_llama(), {})
    asked = measure(Q4_1=2.0)
    plain = plan_of(path, quantization="none").num_bytes(2)
    for spare, kept in ((0, "none"), (-1, "gguf")):
        machine = MachineFacts(device="cpu", num_cores=1, free_memory_bytes=2 * plain + spare)
        assert plan_of(path, machine).quantization == kept
    assert len(asked) == 1  # Nothing is measured where there is nothing to choose.


@pytest.mark.parametrize("quantization", ["gguf", "gguf-int8", "int8", "none"])
def test_nothing_is_measured_for_what_was_asked_for(quantization, tiny_llama, write_gguf, measure):
    asked = measure()
    path = write_gguf(tiny_llama(), {})
    assert plan_of(path, quantization=quantization).quantization == quantization
    assert asked == []


def test_weights_stay_packed_where_other_models_hold_the_memory(tiny_llama, write_gguf, measure):
    measure(Q4_1=2.0)
    checkpoint = Checkpoint("gguf", write_gguf(tiny_llama(), {}), "m")
    config = load_model_config(checkpoint)

    class CrowdedHost:
        room = plan_of(checkpoint.path).num_bytes(2) - 1

        def reserve(self, device, purpose, num_bytes, capacity_bytes):
            if num_bytes > self.room:
                raise InsufficientMemory("no room")
            return self.room - num_bytes

    host = CrowdedHost()
    plan, memory = sizing.planned(checkpoint, config, EngineConfig(), CPU, host)
    assert plan.quantization == memory.intent.quantization == "gguf"
    assert set(plan.layers) == set(plan.packed)
    with pytest.raises(InsufficientMemory):
        sizing.planned(checkpoint, config, EngineConfig(quantization="none"), CPU, host)


def test_a_tied_output_layer_counts_as_the_embedding(tiny_llama, write_gguf, monkeypatch):
    path = write_gguf(tiny_llama(tie_word_embeddings=True, vocab_size=64), {})
    counted = []
    monkeypatch.setattr(panels_format, "product_times", lambda types, dtype: None)
    monkeypatch.setattr(
        panels_format, "mean_ratio", lambda times, counts: counted.append(counts) or 1.0
    )
    plan = plan_of(path)
    linears = [n.removesuffix(".weight") for n in plan.shapes if "_proj" in n]
    sizes = [plan.shapes[f"{name}.weight"] for name in linears]
    total = sum(
        rows * columns for rows, columns in [*sizes, plan.shapes["model.embed_tokens.weight"]]
    )
    assert counted == [{GGUFType.Q4_1: total}]


def test_what_is_not_packed_cannot_be_kept_packed(engines, tiny_llama):
    with pytest.raises(ModelLoadError, match="no weights packed as in GGUF files"):
        engines.make(tiny_llama(), quantization="gguf")


def test_layers_that_do_not_divide_stay_plain(engines, tiny_llama):
    engine = engines.make(tiny_llama(intermediate_size=72), quantization="int8")
    mlp = model_of(engine).model.layers[0].mlp
    assert not isinstance(mlp.down_proj._parts[0][1], PanelsState)
    assert isinstance(mlp.gate_up_proj._parts[0][1], PanelsState)


@pytest.mark.parametrize("tied", [False, True])
def test_memory_is_counted_as_it_is_kept(tied, engines, tiny_llama, write_gguf):
    path = write_gguf(tiny_llama(tie_word_embeddings=tied, vocab_size=64), MIXED)
    plan = plan_of(path, quantization="gguf")
    model = model_of(engines.make(path, quantization="gguf", dtype="bfloat16"))
    packed = sum(state.panels.data.numel() for state in states_of(model))
    norms = sum(t.numel() for n, t in plain_weights(path).items() if "norm" in n)
    # A tied output layer lends its rows.
    embedding = 0 if tied else model.model.embed_tokens.weight.numel()
    assert hasattr(model.model.embed_tokens, "weight") is not tied
    assert plan.num_bytes(2) == packed + 2 * (norms + embedding)
    if tied:
        head = plain_weights(path)["model.embed_tokens.weight"]
        # Nobody lends any to a model without output layer.
        assert plan.num_bytes(2, with_head=False) == plan.num_bytes(2) + 2 * head.numel()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_plain_weights_are_counted_as_they_are_kept(tied, dtype, engines, tiny_llama):
    path = tiny_llama(tie_word_embeddings=tied, vocab_size=64)
    plan = plan_of(path, dtype=dtype)
    model = model_of(engines.make(path, dtype=dtype))
    packed = sum(state.weight.data.numel() for state in states_of(model))
    norms = sum(t.numel() for n, t in plain_weights(path, "folder").items() if "norm" in n)
    embedding = 0 if tied else model.model.embed_tokens.weight.numel()
    itemsize = 4 if dtype == "float32" else 2
    assert plan.num_bytes(itemsize) == itemsize * (packed + norms + embedding)


@pytest.mark.parametrize("quantization", ["none", "gguf", "int8-weights"])
def test_a_tied_embedding_finds_the_rows_of_the_file(quantization, engines, tiny_llama, write_gguf):
    path = write_gguf(tiny_llama(seed=random.randrange(1000), tie_word_embeddings=True), MIXED)
    model = model_of(engines.make(path, quantization=quantization, dtype="bfloat16"))
    wanted = plain_weights(path)["model.embed_tokens.weight"].bfloat16()
    ids = torch.tensor([len(wanted) - 1, *random.choices(range(len(wanted)), k=40)])
    assert torch.equal(model.model.embed_tokens(ids), wanted[ids])
    # Rounded rows are not what was stored: the embedding keeps its own.
    assert hasattr(model.model.embed_tokens, "weight") is (quantization == "int8-weights")


def rank_of_two(path, rank):
    checkpoint = Checkpoint("gguf", path, "m")
    config = load_model_config(checkpoint)
    plan = plan_of(path, quantization="gguf")
    parallel = TensorParallel(rank=rank, size=2, gather=lambda partial: [partial])
    model = create_model(
        config, dtype=torch.float32, parallel=parallel, linear_method=plan.method_for
    )
    model.load_weights(iter_weights(checkpoint, config, plan.packed))
    return model


def test_ranks_divide_packed_weights(tiny_llama, write_gguf):
    path = write_gguf(tiny_llama(intermediate_size=128), MIXED)
    plain = plain_weights(path)
    mlps = [rank_of_two(path, rank).model.layers[1].mlp for rank in (0, 1)]
    down = [unpack(mlp.down_proj._parts[0][1].panels).dequantised() for mlp in mlps]
    wanted = plain["model.layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(torch.cat(down, 1), wanted, rtol=1e-6, atol=1e-7)
    first, second = (unpack(m.gate_up_proj._parts[0][1].panels).dequantised() for m in mlps)
    gate = torch.cat([first[:64], second[:64]])
    wanted = plain["model.layers.1.mlp.gate_proj.weight"]
    torch.testing.assert_close(gate, wanted, rtol=1e-6, atol=1e-7)


def test_ranks_cannot_divide_a_block(tiny_llama, write_gguf):
    path = write_gguf(tiny_llama(intermediate_size=96), {})
    with pytest.raises(ModelLoadError, match="48 input features of type Q4_1 cannot be divided"):
        rank_of_two(path, 0)


def test_adapters_fit_a_gguf_files_rows(engines, tiny_llama, write_gguf, tmp_path):
    """llama.cpp keeps the rows of q and k in another order than the adapter's."""
    folder = tiny_llama(seed=5)
    write_adapter(folder, tmp_path / "lora", target_modules=("q_proj", "k_proj", "down_proj"))
    path = write_gguf(folder, {}, Type.Q8_0)
    lora = (f"x={tmp_path / 'lora'}",)
    packed, plain, without = (
        scores_of(engines, place, 5, adapter=adapter, lora=lora, quantization=quantization)
        for place, adapter, quantization in (
            (path, "x", "gguf"),
            (folder, "x", "none"),
            (folder, None, "none"),
        )
    )
    assert (packed - plain).abs().mean() < 0.1 * (without - plain).abs().mean()
