import random

import numpy as np
import pytest
import torch

from engine.errors import MissingWeight, ModelLoadError, UnsupportedArchitecture
from engine.weights.loader import load_model_config
from tests.helpers.models.checkpoints import in_folder, in_gguf


@pytest.fixture
def read(make_gguf, tiny_llama):
    """`read(folder, arch, **keys)` → the configuration; of a small Llama by default."""

    def read(folder=None, arch="llama", **options):
        path = make_gguf(folder or tiny_llama(), arch, **options)
        return load_model_config(in_gguf(path))

    return read


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_says_the_same_as_config_json(family, read, request):
    folder = request.getfixturevalue(f"tiny_{family}")(rms_norm_eps=2.0**-17)
    ours = read(folder, family)
    assert ours == load_model_config(in_folder(folder))


def test_convolutions_are_layers_without_key_heads(read, tiny_lfm2):
    eps = {"rms_norm_eps": 2.0**-17, "norm_eps": 2.0**-17}
    folder = tiny_lfm2(**eps, block_auto_adjust_ff_dim=False)
    assert read(folder, "lfm2") == load_model_config(in_folder(folder))
    for wrong in (2, [2, 2], [0] * 4, [1, 2, 0, 0]):
        with pytest.raises(ModelLoadError, match=r"lfm2\.attention\.head_count_kv is"):
            read(folder, "lfm2", lfm2__attention__head_count_kv=wrong)


def test_defaults(read, tiny_llama):
    config = read(
        tiny_llama(num_key_value_heads=4),
        llama__attention__head_count_kv=None,
        llama__attention__key_length=None,
        llama__rope__freq_base=None,
        tokenizer__ggml__bos_token_id=None,
        tokenizer__ggml__eos_token_id=None,
    )
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())


def test_all_tokens_that_end_an_answer(read):
    keys = {f"tokenizer.ggml.{n}_token_id": i for n, i in (("eos", 5), ("eot", 7), ("eom", 5))}
    assert read(**keys).eos_token_ids == (5, 7)


def test_sampling_defaults(read):
    keys = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    assert read(**keys).generation == {"temperature": 0.5, "top_k": 20.0}


def test_what_a_file_says_of_sampling_comes_before_what_is_known_of_its_model(read):
    known = {"general.basename": "SmolLM2", "tokenizer.chat_template": "{{ messages }}"}
    assert read(**known).generation == {"temperature": 0.3, "top_p": 0.9}
    stated = {"general.sampling.top_p": 0.5}
    assert read(**known, **stated).generation == {"top_p": 0.5}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "general.architecture",
            "gemma2",
            "'gemma2' is not supported; supported are deepseek2, falcon-h1, gemma3, gemma3n",
        ),
        ("llama.expert_count", 8, "no llama.expert_used_count"),
        ("llama.block_count", None, "no llama.block_count"),
        ("llama.block_count", 0, "llama.block_count is 0"),
        ("llama.embedding_length", "big", "llama.embedding_length is 'big'"),
        ("llama.attention.head_count", [4, 4, 4], r"llama.attention.head_count is \[4, 4, 4\]"),
        ("llama.attention.head_count_kv", 3, "llama.attention.head_count_kv is 3"),
        ("llama.attention.key_length", 15, "needs? an even head size"),
        ("llama.attention.value_length", 8, "llama.attention.value_length is 8"),
        ("llama.rope.dimension_count", 8, "llama.rope.dimension_count is 8"),
        ("llama.rope.freq_base", float("nan"), "llama.rope.freq_base is nan"),
        ("llama.attention.layer_norm_rms_epsilon", None, "no llama.attention.layer_norm_rms"),
        ("llama.rope.scaling.type", "yarn", "no llama.rope.scaling.factor"),
        ("tokenizer.ggml.eos_token_id", "</s>", "tokenizer.ggml.eos_token_id is '</s>'"),
    ],
)
def test_missing_and_nonsense_keys_are_named(key, value, words, read):
    with pytest.raises(ModelLoadError, match=words):
        read(**{key: value})


def test_no_embedding(read):
    with pytest.raises(MissingWeight, match="token_embd"):
        read(skip=("token_embd.weight",))


def test_scaled_rotary_embeddings(read, tiny_qwen2):
    folder = tiny_qwen2()
    yarn = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0}
    config = read(folder, "qwen2", **yarn)
    assert config.rope_scaling == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    assert config.max_position_embeddings == 2048
    original = {"qwen2.rope.scaling.original_context_length": 256}
    assert read(folder, "qwen2", **yarn, **original).max_position_embeddings == 1024
    linear = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0}
    stated = {"rope_type": "linear", "factor": 2.0}
    assert read(folder, "qwen2", **linear).rope_scaling == stated
    assert read(folder, "qwen2", qwen2__rope__scaling__type="none").rope_scaling is None
    without_type = {"qwen2.rope.scaling.factor": 2.0}
    assert read(folder, "qwen2", **without_type).rope_scaling == stated
    assert read(folder, "qwen2", qwen2__rope__scale_linear=2.0).rope_scaling == stated
    assert read(folder, "qwen2", qwen2__rope__scale_linear=0.0).rope_scaling is None


def test_a_factor_of_yarn_with_two_meanings_is_refused(read, tiny_qwen2):
    folder, scaling = tiny_qwen2(), "qwen2.rope.scaling"
    yarn = {f"{scaling}.type": "yarn", f"{scaling}.factor": 8.0}
    usual = {f"{scaling}.yarn_attn_factor": 1.2079442}
    assert read(folder, "qwen2", **yarn, **usual) == read(folder, "qwen2", **yarn)
    for other in (1.0, 1.3):
        with pytest.raises(UnsupportedArchitecture, match=r"yarn_attn_factor is 1.* safetensors"):
            read(folder, "qwen2", **yarn, **{f"{scaling}.yarn_attn_factor": other})
    plain = read(folder, "qwen2", **{f"{scaling}.yarn_attn_factor": 1.3})
    assert plain.rope_scaling is None, "without YaRN nobody reads it"


def test_tokens_that_must_not_be_drawn(read):
    assert read(**{"tokenizer.ggml.suppress_tokens": [7, 5, 7]}).never_token_ids == (7, 5)
    assert read().never_token_ids == ()
    with pytest.raises(ModelLoadError, match="suppress_tokens is"):
        read(**{"tokenizer.ggml.suppress_tokens": ["a"]})


def test_where_yarn_begins_and_ends(read, tiny_qwen2):
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": random.randrange(9, 200) / 4,
        "beta_slow": random.randrange(1, 9) / 4,
    }
    folder = tiny_qwen2(rope_parameters=yarn | {"rope_theta": 1e4})
    names = {
        "type": yarn["rope_type"],
        "factor": yarn["factor"],
        "original_context_length": yarn["original_max_position_embeddings"],
        "yarn_beta_fast": yarn["beta_fast"],
        "yarn_beta_slow": yarn["beta_slow"],
    }
    config = read(folder, "qwen2", **{f"qwen2.rope.scaling.{key}": names[key] for key in names})
    assert config.rope_scaling == load_model_config(in_folder(folder)).rope_scaling == yarn


def test_attention_that_looks_ahead_is_refused(read):
    assert read(llama__attention__causal=True)
    with pytest.raises(UnsupportedArchitecture, match="also attend to later ones"):
        read(llama__attention__causal=False)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_divisors(factor, read, tiny_llama):
    """The divisors come from transformers' own rule."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theirs = LlamaConfig(
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 128, 2, dtype=torch.float32) / 128)
    divisors = (plain / scaled).numpy()
    options = {
        "extra": {"rope_freqs.weight": divisors},
        "llama.rope.freq_base": 500000.0,
        "llama.attention.key_length": 128,
    }
    folder = tiny_llama(head_dim=128)
    found = read(folder, **options).rope_scaling
    assert found | {"factor": factor} == scaling
    assert found["factor"] == pytest.approx(factor, rel=1e-5)

    options["extra"] = {"rope_freqs.weight": np.linspace(1, factor, 64, dtype=np.float32)}
    with pytest.raises(ModelLoadError, match="unsupported way"):
        read(folder, **options)


def test_ends_that_are_known_by_name_only(smollm2_checkpoint):
    """SmolLM2 states <|im_end|> (2); <|endoftext|> (0) ends a text, too."""
    assert load_model_config(smollm2_checkpoint).eos_token_ids == (2, 0)
