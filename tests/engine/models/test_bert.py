"""Encoders against transformers, and that a text's embedding is its own."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import MissingWeight, ModelLoadError, UnsupportedArchitecture
from engine.files.checkpoint_files import read_json
from engine.models import modernbert
from engine.models.encoder import TextRun, text_runs
from engine.models.encoder_registry import create_encoder, encoder_family, read_encoder_config
from engine.models.metadata_keys import MetadataKeys
from engine.models.sentence_encoder import POOLINGS, pool
from kernels import native
from tests.helpers.models.tiny_encoders import (
    assert_no_company_matters,
    load_encoder,
    make_encoder,
    random_texts,
    reference_embeddings,
)

_MODERNBERT = {
    "local_attention": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
FAMILIES = {
    "bert": ("Bert", "Model", {}),
    "bert_with_a_head": ("Bert", "ForMaskedLM", {}),
    "bert_tanh": ("Bert", "Model", {"hidden_act": "gelu_new"}),
    "bert_relu": ("Bert", "Model", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "roberta": ("Roberta", "Model", {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm_roberta": ("XLMRoberta", "ForMaskedLM", {"type_vocab_size": 1, "pad_token_id": 1}),
    "modernbert": ("ModernBert", "Model", _MODERNBERT),
    "modernbert_with_a_head": ("ModernBert", "ForMaskedLM", _MODERNBERT | {"norm_bias": True}),
}


def keys_of(folder: Path, **changes: Any) -> MetadataKeys:
    return MetadataKeys(read_json(folder / "config.json") | changes, "config.json")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_those_of_transformers(name, pooling, tmp_path, monkeypatch):
    # Local attention in several calls, as in longer texts.
    monkeypatch.setattr(modernbert, "_QUERIES", random.randint(1, 30))
    family, architecture, sizes = FAMILIES[name]
    folder = make_encoder(tmp_path, family, architecture=architecture, **sizes)
    texts = random_texts(9)
    ours = load_encoder(folder, pooling).embed(texts)
    theirs = reference_embeddings(folder, texts, pooling)
    assert ours.dtype == torch.float32
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")
def test_a_texts_bits_do_not_depend_on_its_company(pooling, dtype, tmp_path):
    # A width that no vector divides: what is left over is computed in another way.
    sizes = {"hidden_size": 44, "intermediate_size": 75}
    encoder = load_encoder(make_encoder(tmp_path, **sizes), pooling, dtype)
    assert_no_company_matters(encoder.embed, random_texts(12))


def test_another_order_of_sums_would_be_seen():
    hidden = torch.randn(60, 48)
    turned = pool(hidden.flip(0), [60], "mean")
    assert not torch.equal(pool(hidden, [60], "mean"), turned)
    assert torch.allclose(pool(hidden, [60], "mean"), turned, atol=1e-6)


def test_equal_neighbours_are_a_run():
    assert text_runs([2, 2, 5, 2]) == [TextRun(2, 2), TextRun(1, 5), TextRun(1, 2)]


def test_norms_of_the_first_checkpoints_have_other_names(tmp_path):
    folder = make_encoder(tmp_path, architecture="ForMaskedLM")
    texts = random_texts(3)
    before = load_encoder(folder).embed(texts)
    tensors = load_file(folder / "model.safetensors")
    old = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    assert old.keys() != tensors.keys()
    save_file(old, folder / "model.safetensors")
    assert torch.equal(load_encoder(folder).embed(texts), before)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    folder = make_encoder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.key.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MissingWeight, match=r"encoder\.layer\.1\.attention\.self\.key\.bias"):
        load_encoder(folder)


def test_what_is_read_of_config_json(tmp_path):
    bert = read_encoder_config(keys_of(make_encoder(tmp_path)))
    assert bert.architecture == "BertModel"
    assert (bert.max_position_embeddings, bert.first_position) == (66, 0)
    roberta = read_encoder_config(keys_of(make_encoder(tmp_path, "Roberta", pad_token_id=1)))
    assert (roberta.max_position_embeddings, roberta.first_position) == (64, 2)
    stripped = keys_of(tmp_path, architectures=None)
    assert encoder_family(stripped).model_type == "roberta"
    assert encoder_family(keys_of(tmp_path, architectures=["LlamaForCausalLM"])) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["DebertaModel"]},
            "DebertaModel.* supported ones are BertModel, Roberta",
        ),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 5}, "a multiple of num_attention_heads, which is 5"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers is 5000"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"vocab_size": None}, "no vocab_size"),
    ],
)
def test_nonsense_is_named(changes, words, tmp_path):
    folder = make_encoder(tmp_path, num_hidden_layers=1)
    with pytest.raises((ModelLoadError, UnsupportedArchitecture), match=words):
        create_encoder(keys_of(folder, **changes), dtype=torch.float32)
