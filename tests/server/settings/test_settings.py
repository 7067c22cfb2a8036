"""Precedence, refusals and their one line."""

import dataclasses
import json
import os

import pytest

from engine.contract.model_spec import DEFAULT_MODELS
from engine.contract.settings import EngineConfig
from server.settings import Settings, load_client_settings, load_settings, unknown_variables
from server.settings.problem import SettingsProblem


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith("TANDEM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return str(path)

    return write


def problem(given: dict) -> str:
    with pytest.raises(SettingsProblem) as caught:
        load_settings(given)
    line = str(caught.value)
    assert line and "\n" not in line
    return line


def test_defaults_need_nothing():
    settings = load_settings({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.engine == EngineConfig()
    assert [spec.name for spec in settings.model_specs] == list(DEFAULT_MODELS)
    assert settings.read_api_keys() == ()


def test_command_line_beats_environment_beats_file_beats_defaults(monkeypatch, yaml_file):
    engine = "engine:\n  seed: 1\n  block_size: 2\n  dtype: float32"
    given = {"config": yaml_file(f"port: 1\nhost: file\nlog_level: error\n{engine}")}
    monkeypatch.setenv("TANDEM_PORT", "2")
    monkeypatch.setenv("TANDEM_HOST", "environment")
    monkeypatch.setenv("TANDEM_ENGINE__SEED", "2")
    monkeypatch.setenv("TANDEM_ENGINE__BLOCK_SIZE", "4")
    settings = load_settings({**given, "port": "3", "engine": {"seed": "3"}})
    assert (settings.port, settings.host, settings.log_level) == (3, "environment", "error")
    engine = settings.engine
    assert (engine.seed, engine.block_size, engine.dtype) == (3, 4, "float32")
    assert engine.max_num_seqs == EngineConfig().max_num_seqs


def test_variables_may_have_small_letters(monkeypatch):
    monkeypatch.setenv("tandem_port", "77")
    assert load_settings({}).port == 77


def test_the_environment_can_name_the_file(monkeypatch, yaml_file):
    monkeypatch.setenv("TANDEM_CONFIG", yaml_file("port: 77"))
    assert load_settings({}).port == 77


@pytest.mark.parametrize("text", ["a,b", " a , b ", '["a", "b"]'])
def test_lists_in_the_environment(monkeypatch, text):
    monkeypatch.setenv("TANDEM_API_KEYS", text)
    assert load_settings({}).read_api_keys() == ("a", "b")


@pytest.mark.parametrize("text", ["a=./x,b=./y", '["a=./x", "b=./y"]'])
def test_lists_among_the_engines_knobs(monkeypatch, text):
    monkeypatch.setenv("TANDEM_ENGINE__LORA", text)
    assert load_settings({}).engine.adapters == {"a": "./x", "b": "./y"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"engine": {"lora": ["a"]}}, "NAME=PATH"),
        ({"engine": {"lora": ["a="]}}, "NAME=PATH"),
        ({"engine": {"lora": ["=x"]}}, "NAME=PATH"),
        ({"engine": {"lora": ["a\tb=x"]}}, "NAME=PATH"),
        ({"engine": {"lora": ["a=x\0"]}}, "NAME=PATH"),
        ({"engine": {"lora": ["a" * 257 + "=x"]}}, "NAME=PATH"),
        ({"engine": {"lora": ["a=x", "a=y"]}}, "two adapters of lora have the same name"),
        ({"engine": {"lora": ["a=x", "b=y"], "max_cpu_loras": 1}}, "max_cpu_loras is 1"),
        ({"engine": {"max_loras": 4, "max_cpu_loras": 3}}, "max-loras is 4"),
        ({"engine": {"lora": ["a=x"], "max_loras": 0}}, "max-loras is 0"),
        ({"engine": {"lora": ["m=x"]}, "models": ["m=./y"]}, "would be served as m"),
        (
            {"models": ['{"ref": "./x", "name": "m", "settings": {"lora": ["n=./a"]}}', "n=./y"]},
            "would be served as n",
        ),
    ],
)
def test_adapters_have_names_of_their_own(given, reason):
    assert reason in problem(given)


def test_an_empty_key_does_not_open_the_server(monkeypatch, tmp_path):
    monkeypatch.setenv("TANDEM_API_KEYS", "")
    assert "TANDEM_API_KEYS" in problem({})
    monkeypatch.delenv("TANDEM_API_KEYS")
    empty = tmp_path / "keys"
    empty.write_text("# none yet\n\n")
    assert "contains no key" in problem({"api_key_file": str(empty)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "presets by their names"),
        ("{", "neither YAML nor JSON"),
        ("A: {sytem: x}", "A.sytem"),
        ("A: {sampling: {top_p: 2}}", "A.sampling.top_p"),
        ('{"A": {"default": "perhaps"}}', "A.default"),
    ],
)
def test_a_file_of_presets_is_read_at_the_start(tmp_path, text, reason):
    file = tmp_path / "presets"
    file.write_text(text)
    assert reason in problem({"playground_presets": str(file)})


def test_the_clients_key_variable_does_not_leave_the_server_open(monkeypatch):
    monkeypatch.setenv("TANDEM_API_KEY", "zebra")
    assert load_settings({}).read_api_keys() == ("zebra",)
    monkeypatch.setenv("TANDEM_API_KEYS", "a,b")
    assert load_settings({}).read_api_keys() == ("a", "b")
    monkeypatch.delenv("TANDEM_API_KEYS")
    monkeypatch.setenv("TANDEM_API_KEY", "")
    assert "api_keys" in problem({})


def test_variables_that_are_no_setting_are_found(monkeypatch):
    assert unknown_variables() == []
    for name in ("PORT", "URL", "ENGINE", "ENGINE__SEED", "SERVICE_HOST", "PORT_80_TCP"):
        monkeypatch.setenv(f"TANDEM_{name}", "1")
    assert unknown_variables() == []
    for name in ("PROT", "ENGINE__SED", "SEED"):
        monkeypatch.setenv(f"TANDEM_{name}", "1")
    assert unknown_variables() == ["TANDEM_ENGINE__SED", "TANDEM_PROT", "TANDEM_SEED"]


def test_key_file_adds_to_the_given_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the team\nfirst\n\n  second  \n")
    settings = load_settings({"api_keys": ["given"], "api_key_file": str(path)})
    assert settings.read_api_keys() == ("given", "first", "second")


def test_keys_are_never_shown(monkeypatch):
    assert "zebra" not in repr(load_settings({"api_keys": ["zebra"]}))
    assert "zebra" not in problem({"api_keys": ["zebra in the zoo"]})
    monkeypatch.setenv("TANDEM_API_KEYS", "zebra in the zoo")
    assert "zebra" not in problem({})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": "x"}, ("--port", "'x'", "integer")),
        ({"port": "65536"}, ("--port", "65535")),
        ({"engine": {"max_num_seqs": "0"}}, ("--max-num-seqs", "1")),
        ({"engine": {"gpu_memory_utilization": "nan"}}, ("--gpu-memory-utilization", "nan")),
        ({"engine": {"kv_cache_memory_gib": "inf"}}, ("--kv-cache-memory-gib", "inf")),
        ({"drain_timeout_s": "nan"}, ("--drain-timeout-s", "nan")),
        ({"engine": {"dtype": "int4"}}, ("--dtype", "int4", "bfloat16")),
        ({"engine": {"max_num_queued": 3}}, ("max_queued_requests",)),
        ({"log_level": "loud"}, ("--log-level", "debug")),
        ({"models": ["=x"]}, ("--model", "NAME=REF")),
        ({"models": ["a=x", "a=y"]}, ("--model", "a", "NAME=REF")),
        ({"api_key_file": "/nonexistent/keys"}, ("--api-key-file", "no such file")),
        ({"ssl_keyfile": __file__}, ("ssl_keyfile", "ssl_certfile")),
        ({"cors_allow_origins": ["https://app.example/"]}, ("--cors-allow-origin", "scheme")),
        ({"root_path": "llm/"}, ("--root-path", "/llm")),
        ({"config": "/nonexistent/settings.yaml"}, ("--config", "No such file")),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(given, words):
    line = problem(given)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1", ("prot", "did you mean port?")),
        ("engine: {max_num_seq: 1}", ("max_num_seq", "did you mean max_num_seqs?")),
        ("engine: 3", ("engine",)),
        ("engine: {max_num_seqs: 2.5}", ("engine.max_num_seqs in", "2.5")),
        ("port: null", ("port in", "integer")),
        ("- port", ("top level",)),
        ("port: [", ("not valid YAML",)),
        ("config: other.yaml", ("config",)),
        ("models: []", ("models in",)),
    ],
)
def test_a_bad_line_of_the_file_is_named(yaml_file, text, words):
    line = problem({"config": yaml_file(text)})
    assert all(word in line for word in words), line


@pytest.mark.parametrize("text", ["", "# nothing", "engine:", "engine:\n  # seed: 3"])
def test_files_with_everything_commented_out(yaml_file, text):
    assert load_settings({"config": yaml_file(text)}).engine == EngineConfig()


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setenv("TANDEM_ENGINE__MAX_NUM_SEQS", "many")
    assert problem({}).startswith("TANDEM_ENGINE__MAX_NUM_SEQS is 'many'")
    monkeypatch.delenv("TANDEM_ENGINE__MAX_NUM_SEQS")
    monkeypatch.setenv("TANDEM_ENGINE", "{")
    assert "TANDEM_ENGINE" in problem({})


def test_the_address_that_kubernetes_injects_is_not_a_port(monkeypatch):
    monkeypatch.setenv("TANDEM_PORT", "tcp://10.0.0.1:80")
    assert load_settings({}).port == 8000


def test_models_with_settings_of_their_own(monkeypatch, yaml_file):
    given = {"ref": "./a.gguf", "name": "small", "device": "cpu", "settings": {"max_num_seqs": 2}}
    sources = [
        {"models": ["plain", json.dumps(given)]},
        {"config": yaml_file(f"models: [plain, {json.dumps(given)}]")},
    ]
    monkeypatch.setenv("TANDEM_MODELS", json.dumps(["plain", given]))
    for source in ({}, *sources):
        plain, small = load_settings({"max_queued_requests": "10", **source}).model_specs
        assert (plain.name, plain.device) == ("plain", None)
        assert (small.name, small.ref, small.device) == ("small", "./a.gguf", "cpu")
        assert small.settings["max_num_seqs"] == 2
    monkeypatch.setenv("TANDEM_MODELS", json.dumps(given))
    [alone] = load_settings({}).model_specs
    assert alone.name == "small"


def test_a_models_own_queue_holds_whatever_admission_lets_in():
    own = {"ref": "m", "settings": {"max_num_seqs": 100}}
    given = {
        "max_queued_requests": "10",
        "max_queued_images": "0",
        "models": [json.dumps(own), "n"],
    }
    settings = load_settings(given)
    configs = [spec.config(settings.engine_config) for spec in settings.model_specs]
    assert [config.max_num_queued for config in configs] == [110, 74]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, 0),
        ({"engine": {"lora": ["a=x", "b=y"]}}, 2),
        ({"engine": {"lora": ["a=x", "b=y"], "max_loras": 1}}, 2),
        ({"engine": {"max_loras": 2, "max_cpu_loras": 30}}, 30),
        ({"enable_runtime_loading": True}, 0),
        ({"enable_runtime_loading": True, "loadable_loras": ["c=z"]}, 16),
        ({"enable_runtime_loading": True, "loras_dir": ".", "engine": {"max_loras": 3}}, 3),
        ({"enable_runtime_loading": True, "loras_dir": ".", "engine": {"max_cpu_loras": 3}}, 3),
        (
            {
                "enable_runtime_loading": True,
                "loadable_loras": ["*"],
                "engine": {"lora": [f"a{i}=x" for i in range(20)]},
            },
            20,
        ),
    ],
)
def test_models_have_room_for_adapters_where_clients_may_load_some(given, wanted):
    settings = load_settings({"models": ["m"], **given})
    [spec] = settings.model_specs
    assert spec.config(settings.engine_config).max_adapters == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "models: [{ref: m, settings: {max_num_sqs: 1}}]",
            ("models in", "model m", "max_num_seqs?"),
        ),
        ("models: [{ref: m, settings: {max_num_seqs: no}}]", ("models in", "m", "max_num_seqs")),
        ("models: [{ref: m, settings: {seed: 2020-01-01}}]", ("models in", "seed")),
        ("models: [{ref: m, settings: {kv_cache_memory_gib: .nan}}]", ("models in",)),
        ("models: [{name: m}]", ("models in", "ref")),
        ("models: [3]", ("models in", "string")),
        ("models: [a, {ref: b, name: a}]", ("models in", "served as a")),
        ("models_dir: .", ("models_dir", "enable_runtime_loading")),
        ("{models_dir: /nonexistent, enable_runtime_loading: true}", ("models_dir in", "no such")),
        ("loadable_models: ['*']", ("loadable_models", "enable_runtime_loading")),
        ("loadable_models: ['a=']", ("loadable_models in", "NAME=REF")),
        (
            "{models: [a], loadable_models: [a=b], enable_runtime_loading: true}",
            ("served as a",),
        ),
        ("loras_dir: .", ("loras_dir", "enable_runtime_loading")),
        ("loadable_loras: ['*']", ("loadable_loras", "enable_runtime_loading")),
        ("{loadable_loras: [a], enable_runtime_loading: true}", ("loadable_loras", "NAME=PATH")),
        ("admin_keys: [zebra]", ("admin_keys", "enable_runtime_loading")),
    ],
)
def test_a_bad_model_is_named(yaml_file, text, words):
    line = problem({"config": yaml_file(text)})
    assert all(word in line for word in words), line
    assert "zebra" not in line


def test_settings_are_frozen():
    settings = load_settings({})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.engine.seed = 1


def test_the_engine_can_queue_whatever_admission_lets_in():
    def queue(requests: int, images: int) -> int:
        engine = {"max_num_seqs": "4", "max_num_images": "3"}
        given = {"max_queued_requests": str(requests), "max_queued_images": str(images)}
        return load_settings({**given, "engine": engine}).engine_config.max_num_queued

    assert queue(10, 0) == 14
    assert queue(0, 0) == 4
    assert queue(0, 10) == 13


def test_workers_keep_the_operators_settings_of_glibc(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert load_settings({}).worker_tunables == "glibc.malloc.hugetlb=1"
    own = "glibc.malloc.hugetlb=0:glibc.malloc.tcache_count=3"
    monkeypatch.setenv("GLIBC_TUNABLES", own)
    assert load_settings({}).worker_tunables == f"glibc.malloc.hugetlb=1:{own}"


def test_cache_path_follows_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_settings({}).cache_path == tmp_path / "tandem"
    assert load_settings({"cache_dir": "/elsewhere"}).cache_path.as_posix() == "/elsewhere"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_settings({}).cache_path.as_posix() == "/home/someone/.cache/tandem"


def test_client_settings(monkeypatch):
    monkeypatch.setenv("TANDEM_URL", "https://models.example")
    monkeypatch.setenv("TANDEM_PORT", "tcp://10.0.0.1:80")
    assert load_client_settings({"url": None, "api_key": None}).url == "https://models.example"
    assert load_client_settings({"url": "http://other"}).url == "http://other"
    with pytest.raises(SettingsProblem, match="--url"):
        load_client_settings({"url": "other:8000"})


def test_unknown_names_are_refused_from_code_too():
    with pytest.raises(ValueError, match="nonsense"):
        Settings(nonsense=1)
