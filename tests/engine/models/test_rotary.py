"""Rotary angles against transformers', scheme by scheme."""

import random

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.decoder import rope_of
from engine.models.layers.rotary import CHUNK, Rope, RotaryTable
from tests.helpers.models.tiny_pairs import config_of, create_pair, random_text, run_alone

CPU = torch.device("cpu")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
SHORT = {"original_max_position_embeddings": 128}
SCALINGS = {
    "default": {"rope_type": "default"},
    "high_theta": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 5e5,
    },
    "yarn": YARN,
    "yarn_mscale": YARN
    | SHORT
    | {"factor": 40.0, "beta_fast": 16, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn_not_truncated": YARN | SHORT | {"factor": 8.0, "truncate": False},
    "yarn_given_factor": YARN | {"attention_factor": 0.8},
    "yarn_shrinking": YARN | {"factor": 0.5},
}


def make_config(scaling, head_dim=64, length=1024):
    return transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters={"rope_theta": 10000.0} | scaling,
    )


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_angles_equal_transformers(scaling, head_dim):
    hf_config = make_config(scaling, head_dim)
    positions = torch.tensor([0, 1, 2, 77, 500, 1023])
    their_cos, their_sin = LlamaRotaryEmbedding(hf_config)(torch.zeros(1), positions[None])
    ours = table_of(rope_of(config_of("Llama", hf_config)))
    assert ours.shape[1] == head_dim
    cos, sin = ours[positions].chunk(2, -1)
    torch.testing.assert_close(cos.repeat(1, 2), their_cos[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sin.repeat(1, 2), their_sin[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", ["default", "dynamic", "yarn"])
def test_the_bits_of_a_position_do_not_depend_on_how_the_table_grew(scaling):
    rope = rope_of(config_of("Llama", make_config(SCALINGS[scaling])))
    longest = 5 * CHUNK
    at_once = table_of(rope, longest)
    table = RotaryTable(rope, CPU)
    grown_to = 0
    while grown_to < longest:
        grown_to = min(grown_to + random.randrange(1, 2 * CHUNK), longest)
        cos_sin = table.at(torch.tensor([grown_to - 1]), grown_to).cos_sin
        assert torch.equal(cos_sin[:grown_to], at_once[:grown_to])


def test_a_table_that_is_long_enough_stays_where_it_is():
    table = RotaryTable(rope_of(config_of("Llama", make_config(SCALINGS["default"]))), CPU)
    positions = torch.tensor([3])
    first = table.at(positions, 3 * CHUNK).cos_sin.data_ptr()
    assert table.at(positions, 1).cos_sin.data_ptr() == first
    assert table.at(positions, 3 * CHUNK).cos_sin.data_ptr() == first


def test_off_the_cpu_a_table_is_made_whole():
    rope = Rope(16, 10000.0, 3 * CHUNK + 1)
    meta = torch.device("meta")
    table = RotaryTable(rope, meta)
    before = table._cos_sin
    rotation = table.at(torch.zeros(1, dtype=torch.int64, device=meta), 3 * CHUNK + 1)
    assert rotation.cos_sin is before
    assert len(before) > 3 * CHUNK


# Newer transformers call the argument `cache`; both are within the range we test with.
@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
def test_dynamic_scaling_past_the_trained_length_decodes_as_transformers_does():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
    ours, theirs, config = create_pair("Llama", rope_parameters=rope, max_position_embeddings=24)
    text = random_text(60)
    cache = transformers.DynamicCache()
    with torch.no_grad():
        pieces = [text[:20], *([t] for t in text[20:])]
        expected = torch.cat(
            [theirs(torch.tensor([p]), past_key_values=cache).logits[0] for p in pieces]
        )
    for sizes in ([20] + [1] * 40, [60], [7, 20, 33]):
        error = (run_alone(ours, config, text, sizes) - expected).abs().max().item()
        assert error < 1e-4, f"pieces {sizes}: {error}"


def test_unknown_scheme_is_named_with_the_known_ones():
    with pytest.raises(UnsupportedArchitecture, match=r"'su'.*default, linear.*yarn"):
        RotaryTable(with_scaling({"rope_type": "su"}), CPU)


@pytest.mark.parametrize("attention_factor", [None, 1.25])
@pytest.mark.parametrize("head_dim", [16, 80])
def test_longrope_takes_its_list_by_the_longest_text(head_dim, attention_factor):
    numbers = torch.rand(2, head_dim // 2) * 8 + 1
    scaling = {
        "rope_type": "longrope",
        "short_factor": numbers[0].tolist(),
        "long_factor": numbers[1].tolist(),
        "original_max_position_embeddings": 256,
    }
    if attention_factor is not None:
        scaling["attention_factor"] = attention_factor
    hf_config = make_config(scaling, head_dim)
    config = config_of("Llama", hf_config)
    for longest, served in ((255, 256), (255, 100), (256, 257), (1023, 1024), (1023, None)):
        positions = torch.tensor([0, 1, 77, min(longest, (served or 1024) - 1)])
        asked = torch.cat([positions, torch.tensor([longest])])
        their_cos, their_sin = LlamaRotaryEmbedding(hf_config)(torch.zeros(1), asked[None])
        cos, sin = table_of(rope_of(config.within(served)))[positions].chunk(2, -1)
        torch.testing.assert_close(cos.repeat(1, 2), their_cos[0, :4], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sin.repeat(1, 2), their_sin[0, :4], rtol=1e-4, atol=1e-4)
    assert config.within(4096) == config
    assert config.within(100).max_position_embeddings == 100


def test_other_schemes_do_not_ask_for_the_longest_text():
    for scaling in SCALINGS.values():
        config = config_of("Llama", make_config(scaling))
        assert config.within(100) == config


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
def test_longrope_with_other_than_a_number_for_each_frequency_is_refused(name):
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 32,
        "long_factor": [1.0] * 32,
        "original_max_position_embeddings": 256 if name == "long_factor" else 4096,
        "attention_factor": 1.0,
    }
    RotaryTable(with_scaling(scaling), CPU)
    for wrong in ([1.0] * 31, [], None):
        with pytest.raises(ModelLoadError, match=f"numbers in {name}; it must have 32"):
            RotaryTable(with_scaling(scaling | {name: wrong}), CPU)


@pytest.mark.parametrize("factor", [None, "8", True])
def test_scheme_without_its_numbers_is_refused(factor):
    scaling = {"rope_type": "linear", "factor": factor}
    with pytest.raises(ModelLoadError, match="factor must be a number"):
        RotaryTable(with_scaling(scaling), CPU)


def test_old_configurations_say_type():
    old = with_scaling({"type": "linear", "factor": 2.0})
    new = with_scaling({"rope_type": "linear", "factor": 2.0})
    torch.testing.assert_close(table_of(old), table_of(new))


def table_of(rope, longest=1024):
    table = RotaryTable(rope, CPU).at(torch.arange(longest), longest)
    return table.cos_sin[:longest]


def with_scaling(scaling):
    return Rope(64, 10000.0, 1024, scaling)
