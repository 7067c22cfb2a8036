"""Embeddings by decoders against transformers, and that a text's embedding is its own."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from engine.models import whole_texts
from engine.models.registry import create_model
from engine.models.sentence_decoder import SentenceDecoder
from engine.models.sentence_encoder import Pooling
from engine.weights.loader import iter_weights, load_model_config
from kernels import native
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.models.tiny_encoders import assert_no_company_matters

FAMILIES = (
    *("tiny_llama", "tiny_qwen2", "tiny_qwen3"),
    *("tiny_gemma3", "tiny_gemma3n", "tiny_gemma4"),
)
MAX_TOKENS, MAX_TEXTS = 600, 12


@pytest.fixture(params=FAMILIES)
def make_folder(request):
    return request.getfixturevalue(request.param)


def load(
    folder: Path, pooling: Pooling = "last", dtype: torch.dtype = torch.float32
) -> SentenceDecoder:
    checkpoint = in_folder(folder)
    config = load_model_config(checkpoint)
    model = create_model(config, dtype=dtype)
    del model.lm_head
    weights = iter_weights(checkpoint, config)
    model.load_weights((n, t) for n, t in weights if not n.startswith("lm_head."))
    return SentenceDecoder(model, pooling, max_tokens=MAX_TOKENS, max_texts=MAX_TEXTS)


def texts_of(num_texts: int) -> list[list[int]]:
    lengths = random.choices((1, 1, 2, 16, 17, 40, random.randint(1, 50)), k=num_texts)
    return [[random.randrange(400) for _ in range(length)] for length in lengths]


def reference(folder: Path, texts: list[list[int]]) -> Tensor:
    """Last hidden states of the last tokens, each text alone."""
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return torch.stack([model(torch.tensor([t])).last_hidden_state[0, -1] for t in texts])


def test_last_states_are_those_of_transformers(make_folder):
    folder = make_folder(seed=random.randrange(1 << 16))
    texts = texts_of(MAX_TEXTS)
    ours = load(folder).embed(texts)
    theirs = reference(folder, texts)
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 5e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")
def test_a_texts_bits_do_not_depend_on_its_company(make_folder, dtype):
    folder = make_folder(seed=random.randrange(1 << 16))
    decoder = load(folder, random.choice(("last", "mean")), dtype)
    assert_no_company_matters(decoder.embed, texts_of(MAX_TEXTS))


def test_the_largest_call_has_room():
    """The room is counted in blocks: each text may leave its last one almost empty."""
    block = whole_texts._BLOCK
    for _ in range(50):
        lengths = [random.randint(1, 40) for _ in range(random.randint(1, 20))]
        needed = sum(-(-length // block) for length in lengths)
        assert needed <= sum(lengths) // block + len(lengths)


def test_a_folder_of_a_decoder_alone(tiny_qwen3, tmp_path):
    """As sentence encoders made of decoders come: without an output layer, and names without
    `model.`."""
    folder = tiny_qwen3(tie_word_embeddings=False)
    texts = texts_of(5)
    expected = load(folder).embed(texts)
    transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path)
    assert load_model_config(in_folder(tmp_path)).architecture == "Qwen3ForCausalLM"
    assert torch.equal(load(tmp_path).embed(texts), expected)
