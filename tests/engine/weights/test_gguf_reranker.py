"""Qwen3-Reranker from a GGUF file scores as it does from the folder that the file was made of."""

import json
import random

import pytest
from tokenizers import Tokenizer

from engine.contract.score import PairsRequest
from engine.contract.settings import EngineConfig
from engine.embedding.scorers import load_engine
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint
from tests.helpers.host import Host
from tests.helpers.models.tiny_rerankers import make_reranker


def scores(checkpoint: Checkpoint, inputs: list[list[int]]) -> list[float]:
    assert kind_of_checkpoint(checkpoint, "reranker").name == "reranker"
    intent = EngineConfig(device="cpu", num_threads=1, kind="reranker", dtype="float32")
    engine, info = load_engine(checkpoint, "m", intent, Host())
    assert info.has_prompt
    engine.add(PairsRequest(request_id="r", model="m", inputs=inputs))
    found = {}
    while engine.has_work():
        found |= {event.index: event.score for event in engine.step()[0]}
    return [found[index] for index in range(len(inputs))]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_untied"])
def test_scores_are_those_of_the_folder(name, make_gguf, tmp_path):
    seed = random.randrange(1 << 16)
    folder = make_reranker(tmp_path / "folder", name, seed=seed, head="ForCausalLM")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    tokens = {number: token for token, number in ids.items()}
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    path = make_gguf(
        folder,
        "qwen3",
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__pre="qwen2",
        tokenizer__ggml__tokens=[tokens.get(number, f"[{number}]") for number in range(1000)],
        tokenizer__ggml__token_type=[1] * 1000,
        tokenizer__ggml__merges=[" ".join(pair) for pair in merges],
    )
    inputs = [random.choices(range(1000), k=random.randint(1, 40)) for _ in range(5)]
    ours = scores(Checkpoint("gguf", path, "m"), inputs)
    assert ours == pytest.approx(scores(Checkpoint("folder", folder, "m"), inputs), abs=1e-5)
