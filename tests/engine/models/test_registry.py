from dataclasses import replace

import pytest
import torch

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models import registry
from engine.models.config import ModelConfig
from engine.models.registry import (
    create_model,
    families,
    family_of,
    family_of_gguf,
    family_of_model_type,
)
from tests.helpers.models.tiny_pairs import SIZES

FIELDS = {k: v for k, v in SIZES.items() if k not in ("initializer_range", "attn_implementation")}


def make_config(**overrides):
    return ModelConfig(**({"architecture": "LlamaForCausalLM"} | FIELDS | overrides))


@pytest.mark.parametrize("architecture", families())
def test_a_family_is_found_by_each_of_its_names(architecture):
    family = family_of(architecture)
    assert family.architecture == architecture
    assert family_of_model_type(family.model_type) is family
    assert (family.gguf is None) == (family.read_gguf is None)
    assert family.gguf is None or family_of_gguf(family.gguf) is family


def test_a_name_of_two_families_is_noticed():
    family = family_of("LlamaForCausalLM")
    with pytest.raises(ValueError, match="two families are called 'llama'"):
        registry._by_name([("llama", family), ("llama", replace(family, architecture="X"))])


@pytest.mark.parametrize(
    ("architecture", "nearest"),
    [
        ("Qwen3NewForCausalLM", "Qwen3ForCausalLM"),
        ("Llama45ForCausalLM", "LlamaForCausalLM"),
        ("llamaforcausallm", "LlamaForCausalLM"),
        ("MistralForSequenceClassification", "MistralForCausalLM"),
    ],
)
def test_unknown_architecture_names_the_nearest(architecture, nearest):
    with pytest.raises(UnsupportedArchitecture, match=rf"'{architecture}'.*nearest.*{nearest}"):
        create_model(make_config(architecture=architecture), dtype=torch.float32)


@pytest.mark.parametrize("architecture", ["", "T5", "?" * 500])
def test_unlike_anything_names_the_page(architecture):
    with pytest.raises(UnsupportedArchitecture, match=r"docs/models\.md lists the supported ones"):
        family_of(architecture)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_key_value_heads": 4}, "6 attention heads cannot share 4"),
        ({"head_dim": 15}, "head_dim is 15; it must be even"),
        ({"windows": (None,)}, "windows are given for 1 layers; num_hidden_layers is 2"),
    ],
)
def test_contradicting_sizes_are_refused(overrides, message):
    with pytest.raises(ModelLoadError, match=message):
        create_model(make_config(**overrides), dtype=torch.float32)


def test_another_activation_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="hidden_act 'gelu'"):
        create_model(make_config(hidden_act="gelu"), dtype=torch.float32)


def test_a_model_without_weights_takes_no_memory():
    model = create_model(make_config(vocab_size=10**9, hidden_size=10**6), dtype=torch.bfloat16)
    assert list(model.parameters()) == []
