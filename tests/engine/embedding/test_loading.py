"""From a folder to embeddings: which folders, which limits, and the numbers of a reference."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from engine.contract.embed import EmbeddingModelInfo, EmbeddingRequest
from engine.contract.operations import DRAW, EMBED, GENERATE
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.embedding import loading
from engine.errors import InsufficientMemory, ModelLoadError, UnsupportedArchitecture
from engine.text.tokenizer import load_tokenizer
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint, resolve_source
from tests.helpers.host import Host
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.models.json_files import change_json
from tests.helpers.models.tiny_encoders import (
    NUM_TOKENS,
    add_sentence_layout,
    make_encoder,
    random_texts,
    reference_embeddings,
)


def load(model: Path | Checkpoint, host=None, **knobs: Any) -> tuple[Any, EmbeddingModelInfo]:
    intent = EngineConfig(**({"device": "cpu", "num_threads": 1} | knobs))
    checkpoint = model if isinstance(model, Checkpoint) else in_folder(model)
    return loading.load_engine(checkpoint, "m", intent, host or Host())


def embed(engine: Any, texts: list[list[int]], **fields: Any) -> torch.Tensor:
    engine.add(EmbeddingRequest(request_id="r", model="m", inputs=texts, **fields))
    found = {}
    while engine.has_work():
        for event in engine.step()[0]:
            assert event.failure is None, event.failure
            found[event.index] = np.frombuffer(event.embedding, "<f4").copy()
    return torch.tensor(np.stack([found[index] for index in range(len(texts))]))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalizes", [True, False])
def test_embeddings_of_a_folder(pooling, normalizes, tmp_path):
    folder = add_sentence_layout(make_encoder(tmp_path), pooling, normalizes=normalizes)
    texts = random_texts(20)
    engine, info = load(folder)
    assert (info.pooling, info.normalized, info.dtype) == (pooling, normalizes, "float32")
    expected = reference_embeddings(folder, texts, pooling)
    for dimensions in (None, 7):
        expected = expected[:, :dimensions]
        if normalizes:
            expected = normalize(expected)
        found = embed(engine, texts, dimensions=dimensions)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_the_server_is_told(tmp_path):
    folder = add_sentence_layout(make_encoder(tmp_path), "cls", max_tokens=30)
    engine, info = load(folder)
    assert (info.model, info.path, info.architecture) == ("m", str(folder), "BertModel")
    assert (info.max_model_len, info.vocab_size, info.dimensions) == (30, NUM_TOKENS, 48)
    assert engine.stats() == EMBED.stats()
    assert load(folder, max_model_len=50)[1].max_model_len == 50
    assert load(folder, max_model_len=5000)[1].max_model_len == 66
    assert load(folder, max_model_len=50)[1].config_hash != info.config_hash
    assert load(folder, dtype="bfloat16")[1].dtype == "bfloat16"


@pytest.mark.parametrize(("policy", "first"), [("fcfs", "a"), ("priority", "b")])
def test_the_configured_policy_is_the_engines(tmp_path, policy, first):
    engine, _ = load(make_encoder(tmp_path), scheduling_policy=policy, max_num_seqs=1)
    for name, priority in (("a", 0), ("b", -1)):
        request = EmbeddingRequest(request_id=name, model="m", inputs=[[1]], priority=priority)
        engine.add(request)
    [event], _ = engine.step()
    assert event.request_id == first


def test_memory_is_asked_for_before_it_is_taken(tmp_path):
    folder = make_encoder(tmp_path)
    host = Host()
    load(folder, host)
    reserved = {purpose: num_bytes for _, purpose, num_bytes in host.reserved}
    size = (folder / "model.safetensors").stat().st_size
    assert abs(reserved["weights"] - size) < 10_000
    assert reserved["activations"] > 512 * 80 * 4
    assert host.reports[-1][0] is Phase.WARMING_UP
    with pytest.raises(InsufficientMemory, match="no memory for weights"):
        load(folder, Host(lambda purpose: False))


def test_which_folders_are_of_this_kind(tmp_path, tiny_llama):
    assert kind_of_checkpoint(in_folder(make_encoder(tmp_path))).main is EMBED
    assert kind_of_checkpoint(in_folder(tiny_llama())).main is GENERATE


@torch.no_grad()
def last_states(model: Any, texts: list[list[int]]) -> torch.Tensor:
    """Give transformers' embeddings by a decoder."""
    states = [model(torch.tensor([text])).last_hidden_state[0, -1] for text in texts]
    return normalize(torch.stack(states))


def test_a_text_model_makes_embeddings_if_that_is_asked_for(tiny_llama):
    folder = tiny_llama(seed=4)
    assert kind_of_checkpoint(in_folder(folder), "embedding").main is EMBED
    image = Checkpoint("diffusers", folder, "m")
    assert kind_of_checkpoint(image, "embedding").main is DRAW
    engine, info = load(folder, kind="embedding", dtype="float32")
    assert (info.architecture, info.pooling, info.normalized) == ("LlamaForCausalLM", "last", True)
    assert (info.max_model_len, info.dimensions) == (512, 64)
    texts = [[5, 6, 7], [8] * 40, [9]]
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert (embed(engine, texts) - last_states(model, texts)).abs().max() < 1e-4
    long = [[1] * 512, [2] * 3, [3]]
    assert torch.equal(embed(engine, long)[0], embed(engine, long[:1])[0])


def test_a_decoder_of_sentence_transformers_is_one_without_being_asked(tiny_qwen3):
    folder = add_sentence_layout(tiny_qwen3(), "last", max_tokens=77)
    assert kind_of_checkpoint(Checkpoint("folder", folder, "m")).main is EMBED
    _, info = load(folder)
    assert (info.pooling, info.max_model_len, info.dtype) == ("last", 77, "bfloat16")


@pytest.mark.slow
def test_smollm2_embeds_from_its_gguf_file(smollm2_checkpoint, smollm2_reference):
    assert kind_of_checkpoint(smollm2_checkpoint, "embedding").main is EMBED
    how = {"num_threads": 1, "kind": "embedding", "dtype": "float32"}
    engine, info = load(smollm2_checkpoint, **how)
    assert (info.max_model_len, info.dimensions) == (8192, 576)
    tokenizer = load_tokenizer(smollm2_checkpoint.path)
    texts = [tokenizer.encode(text) for text in SENTENCES[:4]]
    ours = embed(engine, texts)
    assert (ours - last_states(smollm2_reference.model, texts)).abs().max() < 1e-4


def test_weights_that_give_no_numbers_are_found_at_the_start(tmp_path):
    folder = make_encoder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][3] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"a trial embedding failed: .* not finite"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["DistilBertModel"], "model_type": "x"},
            r"'DistilBertModel' is not supported; .*; supported encoders are BertModel, Roberta",
        ),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"intermediate_size": 81}, "has shape"),
        ({"intermediate_size": 2**31 - 1}, r"than this machine has|has shape"),
    ],
)
def test_folders_that_cannot_be_served(changes, words, tmp_path):
    folder = add_sentence_layout(make_encoder(tmp_path), "mean")
    change_json(folder / "config.json", **changes)
    with pytest.raises((ModelLoadError, UnsupportedArchitecture), match=words):
        load(folder)


SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "Ein Mann isst Brot; 東京 is far away, naïve café!",
    "word " * 200,
)


@pytest.mark.slow
def test_minilm_is_that_of_transformers(minilm_checkpoint):
    engine, info = load(minilm_checkpoint)
    assert (info.max_model_len, info.dimensions, info.pooling) == (256, 384, "mean")
    tokenizer = load_tokenizer(minilm_checkpoint.path)
    texts = [tokenizer.encode(text) for text in SENTENCES]
    texts += [[101, *random.choices(range(999, 30522), k=random.randint(1, 250)), 102]]
    ours = embed(engine, texts)
    theirs = normalize(reference_embeddings(minilm_checkpoint.path, texts))
    assert (ours - theirs).abs().max() < 1e-5, texts[-1]
    alike, other = ours[0] @ ours[1], ours[0] @ ours[2]
    assert alike > 0.5 > other


@pytest.mark.slow
def test_minilms_tokens_are_those_of_transformers(minilm_checkpoint):
    tokenizer = load_tokenizer(minilm_checkpoint.path)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_checkpoint.path)
    for text in SENTENCES:
        assert tokenizer.encode(text) == theirs(text)["input_ids"]


def test_the_wheel_is_known_by_name(tmp_path):
    with pytest.raises(ModelLoadError, match="all-minilm-l6-v2 is not in the cache"):
        resolve_source("all-MiniLM-L6-v2", cache_dir=tmp_path, on_progress=print, offline=True)
