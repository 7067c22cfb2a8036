"""Gemma 3 from config.json and from GGUF: what is read, and the logits that come of it."""

import random
from dataclasses import replace

import pytest

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.gemma3 import Gemma3Config
from engine.weights.loader import load_model_config
from tests.helpers.models.checkpoints import (
    assert_logits_of_transformers,
    in_folder,
    in_gguf,
)
from tests.helpers.models.json_files import change_json

SCALED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    "options",
    [{}, {"final_logit_softcapping": 5.0}, {"rope_parameters": SCALED}],
    ids=["plain", "soft_cap", "scaled_rope"],
)
def test_folder_and_gguf_give_the_logits_of_transformers(options, tiny_gemma3, make_gguf):
    # Six layers, the last of which looks back at all: what GGUF files imply.
    sizes = {"num_hidden_layers": 6, "layer_types": None, "rms_norm_eps": 2.0**-17}
    folder = tiny_gemma3(seed=random.randrange(1 << 16), **sizes, **options)
    keys = {"gemma3.attention.sliding_window": 24}
    if "final_logit_softcapping" in options:
        keys["gemma3.final_logit_softcapping"] = 5.0
    if "rope_parameters" in options:
        keys |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    both = in_folder(folder), in_gguf(make_gguf(folder, "gemma3", **keys))
    assert_logits_of_transformers(folder, *both)
    read, read_gguf = map(load_model_config, both)
    assert isinstance(read, Gemma3Config)
    assert replace(read, norm_offset=0.0) == read_gguf
    assert read.windows == (24,) * 5 + (None,)


def test_what_gptqmodel_writes_beside_the_types_of_layers_does_not_count(tiny_gemma3):
    folder = tiny_gemma3(rope_parameters=SCALED)
    expected = load_model_config(in_folder(folder))
    beside = {"rope_type": "default", "rope_theta": {"global": 1e6, "local": 1e4}}
    change_json(folder / "config.json", rope_parameters=SCALED | beside)
    assert load_model_config(in_folder(folder)) == expected


def test_reads_what_transformers_4_wrote(tiny_gemma3):
    folder = tiny_gemma3()
    change_json(
        folder / "config.json",
        rope_parameters=...,
        layer_types=...,
        rope_theta=5e5,
        rope_local_base_freq=2e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=3,
    )
    read = load_model_config(in_folder(folder))
    assert (read.rope_theta, read.local_rope_theta) == (5e5, 2e4)
    assert read.rope_scaling == {"rope_type": "linear", "factor": 8.0}
    assert read.local_rope_scaling is None
    assert read.windows == (24, 24, None, 24)


def test_the_largest_ones_scores_are_scaled_by_the_hidden_size(tiny_gemma3, make_gguf):
    folder = tiny_gemma3(num_hidden_layers=1, layer_types=["sliding_attention"])
    keys = {"gemma3.attention.sliding_window": 24, "gemma3.block_count": 62}
    read = load_model_config(in_gguf(make_gguf(folder, "gemma3", **keys)))
    assert read.score_scale == (64 // 4) ** -0.5
    assert read.windows.count(None) == 10


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (None, (24, 24, 24, 24)),
        (2, (24, None, 24, None)),
        ([False, True, True, False], (None, 24, 24, None)),
        *((nonsense, None) for nonsense in (0, "two", [True], [1, 0, 1, 0])),
    ],
)
def test_which_layers_slide_in_a_gguf_file(pattern, windows, tiny_gemma3, make_gguf):
    keys = {
        "gemma3.attention.sliding_window": 24,
        "gemma3.attention.sliding_window_pattern": pattern,
    }
    checkpoint = in_gguf(make_gguf(tiny_gemma3(), "gemma3", **keys))
    if windows is None:
        with pytest.raises(ModelLoadError, match="sliding_window_pattern is"):
            load_model_config(checkpoint)
    else:
        assert load_model_config(checkpoint).layer_windows == windows


def test_no_layer_slides_in_a_gguf_file_without_a_window(tiny_gemma3, make_gguf):
    config = load_model_config(in_gguf(make_gguf(tiny_gemma3(), "gemma3")))
    assert config.layer_windows == (None,) * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": 3}, "rope_parameters is 3"),
        ({"rope_parameters": {"full_attention": 3}}, "rope_parameters is"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters is"),
        ({"rope_parameters": None, "rope_scaling": [1]}, r"rope_scaling is \[1\]"),
        ({"layer_types": ["full_attention"]}, "layer_types is"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"sliding_window": "wide"}, "sliding_window is 'wide'"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"final_logit_softcapping": -1}, "final_logit_softcapping is -1"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_nonsense_is_named(changes, words, tiny_gemma3):
    folder = tiny_gemma3()
    change_json(folder / "config.json", **changes)
    with pytest.raises((ModelLoadError, UnsupportedArchitecture), match=words):
        load_model_config(in_folder(folder))
