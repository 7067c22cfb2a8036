"""What a model's makers recommend, what the operator says instead, and which of them counts."""

import json
import math
import random
from typing import Any

import pytest

from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns
from engine.contract.sampling_values import checked
from engine.contract.settings import EngineConfig
from engine.errors import CorruptFile, InvalidParameter, ModelLoadError, ModelNotFound
from engine.weights.default_sampling import default_sampling, recommended
from engine.weights.known_sampling import known_sampling

NUMBERS = [one for one in SAMPLER_PARAMETERS.values() if one.kind != Patterns]


def drawn() -> dict[str, Any]:
    return {
        "temperature": random.uniform(0, 2),
        "top_p": random.uniform(0, 1),
        "top_k": random.randint(-1, 100),
        "min_p": random.uniform(0, 1),
        "repetition_penalty": random.uniform(0.5, 2),
    }


def test_the_models_recommendation_is_taken_unless_the_operator_says_otherwise():
    own = drawn()
    assert default_sampling(own, "auto", None) == own
    assert default_sampling(own, "none", None) == {}
    assert default_sampling(own, "auto", {"temperature": 0.25}) == own | {"temperature": 0.25}
    assert default_sampling(own, "none", {"min_p": 0.125}) == {"min_p": 0.125}


def test_another_generation_config_takes_its_place(tmp_path):
    other = drawn()
    beside = {"max_new_tokens": 7, "do_sample": True, "typical_p": None, "eos_token_id": [1]}
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(other | beside))
    for source in (tmp_path, file):
        assert default_sampling(drawn(), str(source), None) == other
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        default_sampling({}, str(tmp_path / "missing"), None)
    file.write_text("[")
    with pytest.raises(CorruptFile):
        default_sampling({}, str(file), None)


def test_of_a_generation_config_only_sampling_is_taken():
    own = drawn()
    assert recommended(own | {"num_beams": 4, "top_h": 1, "pad_token_id": 0}) == own
    assert recommended(dict.fromkeys(own)) == {}


@pytest.mark.parametrize("value", ["hot", True, None, [1], math.nan, -5, 1 << 4000, 1e308])
@pytest.mark.parametrize("name", ["temperature", "top_k", "mirostat"])
def test_values_out_of_their_bounds_are_named(name, value):
    with pytest.raises(InvalidParameter, match=rf"^{name} is .{{1,80}}; it must be "):
        checked({name: value})
    with pytest.raises(ModelLoadError, match=f"json: {name} is .* --generation-config none"):
        default_sampling({name: value}, "auto", None)
    assert default_sampling({name: value}, "none", None) == {}


def test_whole_numbers_and_choices():
    assert checked({"top_k": 20.0}) == {"top_k": 20}
    for values in ({"top_k": 2.5}, {"mirostat": 1}, {"typical_p": 0}):
        with pytest.raises(InvalidParameter):
            checked(values)


def test_all_neutral_values_are_within_the_bounds():
    neutral = {one.name: one.neutral for one in NUMBERS}
    assert checked(neutral) == neutral


def test_a_bad_override_is_refused_before_anything_is_loaded():
    for bad in ({"temperature": 2.5}, {"heat": 1.0}, {"dry_sequence_breakers": 1.0}):
        with pytest.raises(InvalidParameter) as refused:
            EngineConfig(override_generation_config=bad)
        assert refused.value.param == "override_generation_config"


@pytest.mark.parametrize(
    ("basename", "finetune", "version", "known"),
    [
        ("SmolLM2", "Instruct", None, {"temperature": 0.3, "top_p": 0.9}),
        ("smollm2", "8k-lc100k-mix1-ep2", None, {"temperature": 0.3, "top_p": 0.9}),
        ("Meta-Llama-3.1", "Instruct", None, {"temperature": 0.6, "top_p": 0.9}),
        ("Llama-3.2", None, None, {}),
        ("Qwen3", None, None, {"temperature": 0.6, "top_p": 0.95, "top_k": 20}),
        ("Qwen3", "Instruct", "2507", {}),
        ("gemma-3", "it", None, {"top_p": 0.95, "top_k": 64}),
        ("gemma-3", "pt", None, {}),
        (None, None, None, {}),
        (7, [1], None, {}),
    ],
)
def test_files_of_known_models_need_not_say_it(basename, finetune, version, known):
    named = {"basename": basename, "finetune": finetune, "version": version}
    metadata = {f"general.{key}": value for key, value in named.items() if value is not None}
    chats = metadata | {"tokenizer.chat_template": "{{ messages }}"}
    assert known_sampling(chats) == known == checked(known)
    assert known_sampling(metadata) == {}, "a base model holds no chats"
