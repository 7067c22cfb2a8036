"""What a model may be given beside its name."""

import json

import pytest

from engine.contract.model_spec import ModelSpec
from engine.contract.settings import EngineConfig
from engine.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "name", "ref"),
    [
        ("org/name", "org/name", "org/name"),
        ("./models/tiny", "tiny", "./models/tiny"),
        ("org/name:file.Q4.gguf", "file.Q4", "org/name:file.Q4.gguf"),
        ("./m.Q4-00002-of-00003.gguf", "m.Q4", "./m.Q4-00002-of-00003.gguf"),
        ("small=./a.gguf", "small", "./a.gguf"),
        ('{"ref": "./a.gguf"}', "a", "./a.gguf"),
        (' {"ref": "./a.gguf", "name": "small", "device": null}', "small", "./a.gguf"),
    ],
)
def test_names_and_references(text, name, ref):
    spec = ModelSpec.parse(text)
    assert (spec.name, spec.ref, spec.device, spec.settings) == (name, ref, None, {})


def test_settings_of_its_own_come_before_the_servers():
    given = {"max_model_len": 64, "kv_cache_memory_gib": 1, "seed": None, "dtype": "float32"}
    spec = ModelSpec.parse(json.dumps({"ref": "m", "device": "cpu", "settings": given}))
    assert isinstance(spec.settings["kv_cache_memory_gib"], float)
    of_server = EngineConfig(max_model_len=128, max_num_seqs=3, seed=7, device="cuda")
    config = spec.config(of_server)
    assert (config.max_model_len, config.max_num_seqs, config.seed) == (64, 3, None)
    assert (config.device, config.dtype, config.kv_cache_memory_gib) == ("cpu", "float32", 1.0)
    assert ModelSpec.parse("m").config(of_server) == of_server


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"max_num_seq": 1}, "max_num_seq", "did you mean max_num_seqs?"),
        ({"max_num_seqs": 0}, "max_num_seqs", "it must be at least 1"),
        ({"max_num_seqs": "4"}, "max_num_seqs", "Expected `int`, got `str`"),
        ({"max_num_seqs": 4.5}, "max_num_seqs", "Expected `int`"),
        ({"max_num_seqs": None}, "max_num_seqs", "Expected `int`, got `null`"),
        ({"dtype": "int4"}, "dtype", "auto, bfloat16, float16, float32"),
        ({"kv_cache_memory_gib": float("nan")}, "kv_cache_memory_gib", "finite"),
        ({"device": "cpu"}, "device", "beside settings"),
        ({"image_share": 0.1}, "image_share", "for all models together"),
        ({"max_num_queued": 1}, "max_num_queued", "max_queued_requests"),
    ],
)
def test_a_setting_that_cannot_be_is_named(given, param, words):
    with pytest.raises(InvalidParameter) as caught:
        ModelSpec.create("m", settings=given)
    assert caught.value.param == param
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("=x", "NAME=REF"),
        ("x=", "NAME=REF"),
        ("", "NAME=REF"),
        ("{}", "ref"),
        ("{", "not valid"),
        ('{"ref": 3}', "ref"),
        ('{"ref": "m", "name": 3}', "name must be a string"),
        ('{"ref": "m", "settings": []}', "settings must be an object"),
        ('{"ref": "m", "setings": {}}', "did you mean settings?"),
        ('{"ref": "m", "name": " "}', "not be empty"),
        ('{"ref": "m", "name": "a\\nb"}', "printable"),
        ('{"ref": "m", "device": "tpu"}', "device"),
        ("n" * 257 + "=m", "256"),
        ("m=" + "r" * 5000, "4096"),
    ],
)
def test_what_is_no_model(text, words):
    with pytest.raises(InvalidParameter) as caught:
        ModelSpec.parse(text)
    assert words in caught.value.message
