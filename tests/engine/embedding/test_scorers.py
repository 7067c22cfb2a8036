"""Rerankers as engines: which checkpoints they are, what is refused, and bits in any company."""

import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine.contract.operations import EMBED, SCORE
from engine.contract.score import PairsRequest, RerankerInfo
from engine.contract.settings import EngineConfig
from engine.embedding.scorers import load_engine
from engine.errors import MissingWeight, ModelLoadError, RequestError, UnsupportedArchitecture
from engine.weights.recognition import kind_of_checkpoint
from kernels import native
from tests.helpers.host import Host
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.models.json_files import change_json
from tests.helpers.models.tiny_rerankers import LONGEST, make_reranker

TORCH = "torch.nn.modules"
OF_EACH_KIND = ["bert", "roberta", "modernbert_mean", "qwen3"]


def load(folder: Path, **knobs: Any) -> tuple[Any, RerankerInfo]:
    intent = EngineConfig(**({"device": "cpu", "num_threads": 1} | knobs))
    return load_engine(in_folder(folder), "m", intent, Host())


def scores(engine: Any, *requests: PairsRequest) -> dict[tuple[str, int], float]:
    for request in requests:
        engine.add(request)
    found = {}
    while engine.has_work():
        for event in engine.step()[0]:
            assert event.failure is None, event.failure
            found[event.request_id, event.index] = event.score
    return found


def ask(name: str, num: int, longest: int = LONGEST) -> PairsRequest:
    lengths = [random.choice((1, 7, random.randint(1, longest), longest)) for _ in range(num)]
    return PairsRequest(
        request_id=name,
        model="m",
        inputs=[random.choices(range(3, 70), k=length) for length in lengths],
        first_lengths=[random.randint(0, length) for length in lengths],
    )


@pytest.mark.parametrize("name", OF_EACH_KIND)
@pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")
def test_no_company_changes_a_bit(name, tmp_path):
    folder = make_reranker(tmp_path, name, seed=random.randrange(1 << 16))
    engine, _ = load(folder, max_num_batched_tokens=random.choice((64, 150, 4000)))
    asked = ask("x", 8)
    alone = {}
    for index, (pair, length) in enumerate(zip(asked.inputs, asked.first_lengths, strict=True)):
        one = PairsRequest(request_id="x", model="m", inputs=[pair], first_lengths=[length])
        alone["x", index] = scores(engine, one)["x", 0]
    for _ in range(3):
        found = scores(engine, ask("a", 3), asked, ask("b", 5))
        assert {key: found[key] for key in alone} == alone
    stats = engine.stats()
    assert (type(stats), stats.num_tokens > 0) == (SCORE.stats, True)


def test_which_checkpoints_are_rerankers(tmp_path):
    folder = make_reranker(tmp_path, "bert", seed=0)
    assert kind_of_checkpoint(in_folder(folder)).main is SCORE
    assert kind_of_checkpoint(in_folder(folder), "embedding").main is EMBED
    _, info = load(folder, max_model_len=40)
    assert (info.architecture, info.max_model_len) == ("BertForSequenceClassification", 40)
    assert (info.activation, info.has_prompt, info.dtype) == ("sigmoid", False, "float32")


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({"sbert_ce_default_activation_function": f"{TORCH}.linear.Identity"}, "none"),
        ({"sentence_transformers": {"activation_fn": f"{TORCH}.linear.Identity"}}, "none"),
        ({"sentence_transformers": {"activation_fn": f"{TORCH}.activation.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": f"{TORCH}.activation.Tanh"}}, None),
        ({"architectures": ["DebertaV2ForSequenceClassification"]}, None),
        ({"architectures": ["LlamaForSequenceClassification"]}, None),
    ],
)
def test_what_config_json_says(changes, activation, tmp_path):
    folder = make_reranker(tmp_path, "bert", seed=0, num_hidden_layers=1)
    change_json(folder / "config.json", **changes)
    if activation is None:
        with pytest.raises(UnsupportedArchitecture, match=r"activation is .*Tanh|supported rera"):
            load(folder)
    else:
        assert load(folder)[1].activation == activation


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_a_model_with_several_labels_is_refused(name, tmp_path):
    folder = make_reranker(tmp_path, name, seed=0, num_labels=3, num_hidden_layers=1)
    with pytest.raises(UnsupportedArchitecture, match="has 3 labels; a reranker needs"):
        load(folder)


def test_a_head_that_is_incomplete_is_refused(tmp_path):
    folder = make_reranker(tmp_path, "bert", seed=0, num_hidden_layers=1)
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.pooler.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MissingWeight, match=r"bert\.pooler\.dense\.bias"):
        load(folder)


def test_other_text_models_are_refused_as_rerankers(tiny_llama, tiny_qwen3):
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM has no head that scores pairs"):
        load(tiny_llama(), kind="reranker")
    with pytest.raises(ModelLoadError, match="no tokens yes and no"):
        load(tiny_qwen3(), kind="reranker")


def test_what_the_engine_cannot_take_is_refused(tmp_path):
    engine, _ = load(make_reranker(tmp_path, "bert", seed=0, num_hidden_layers=1))
    for inputs in ([[]], [[3] * (LONGEST + 1)], [[5000]]):
        with pytest.raises(RequestError):
            engine.add(PairsRequest(request_id="r", model="m", inputs=inputs))
    assert not engine.has_work()
