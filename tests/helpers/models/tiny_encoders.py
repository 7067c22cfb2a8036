"""Makes folders of random sentence encoders, and embeds the same texts by transformers."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
import transformers
from torch import Tensor

from engine.files.checkpoint_files import read_json
from engine.models.encoder_registry import create_encoder, encoder_weights
from engine.models.metadata_keys import MetadataKeys
from engine.models.sentence_encoder import Pooling, SentenceEncoder
from engine.weights.safetensors import iter_tensors
from tools.tiny_models import randomise_vectors

WORDS = "the quick brown fox jumps over that lazy dog while seven wizards make toxic brew"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *ascii_lowercase]
VOCABULARY += [f"##{letter}" for letter in ascii_lowercase]
NUM_TOKENS = len(VOCABULARY)

_FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}


def make_encoder(
    folder: Path,
    family: str = "Bert",
    *,
    seed: int | None = None,
    architecture: str = "Model",
    **overrides: Any,
) -> Path:
    """A folder as transformers saves it, with a tokenizer of whole words and letters. The seed is
    drawn by default."""
    sizes = {
        "vocab_size": NUM_TOKENS,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,
    }
    create = getattr(transformers, f"{family}{architecture}")
    with torch.random.fork_rng():
        torch.manual_seed(random.randrange(1 << 31) if seed is None else seed)
        model = create(create.config_class(**(sizes | overrides)))
        randomise_vectors(model)
    model.save_pretrained(folder)
    write_wordpiece(folder)
    return folder


def write_wordpiece(folder: Path) -> None:
    """BERT's tokenizer over `VOCABULARY`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {token: i for i, token in enumerate(VOCABULARY)}
    raw = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    raw.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def add_sentence_layout(
    folder: Path, pooling: str, *, normalizes: bool = True, max_tokens: int | None = None
) -> Path:
    """Add the files that sentence-transformers writes."""
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps[: 2 + normalizes])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {flag: way == pooling for way, flag in _FLAGS.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps(flags))
    if max_tokens is not None:
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": max_tokens, "do_lower_case": False})
        )
    return folder


def load_encoder(
    folder: Path, pooling: Pooling = "mean", dtype: torch.dtype = torch.float32
) -> SentenceEncoder:
    """Load our encoder from a folder."""
    keys = MetadataKeys(read_json(folder / "config.json"), "config.json")
    encoder = create_encoder(keys, dtype=dtype)
    assert encoder.load_weights(encoder_weights(keys, iter_tensors(folder))) == []
    return SentenceEncoder(encoder, pooling)


def reference_embeddings(
    folder: Path, texts: Sequence[Sequence[int]], pooling: str = "mean"
) -> Tensor:
    """[B, C] by transformers, with padding and a mask, pooled as sentence-transformers pools."""
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    longest = max(map(len, texts))
    pad = model.config.pad_token_id or 0
    ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    wide = mask.unsqueeze(-1).float()
    if pooling == "mean":
        return (hidden * wide).sum(1) / wide.sum(1)
    if pooling == "max":
        return hidden.masked_fill(wide == 0, -1e9).max(1).values
    last = mask.sum(1) - 1 if pooling == "last" else torch.zeros(len(texts), dtype=torch.long)
    return hidden[torch.arange(len(texts)), last]


def random_texts(num_texts: int, longest: int = 64) -> list[list[int]]:
    """Token ids, some texts of equal lengths; no padding token among them."""
    lengths = [
        random.choice((1, 2, 7, random.randint(1, longest), longest)) for _ in range(num_texts)
    ]
    return [random.choices(range(2, NUM_TOKENS), k=length) for length in lengths]


def assert_no_company_matters(
    embed: Callable[[list[list[int]]], Tensor], texts: list[list[int]]
) -> None:
    """Assert that a text's embedding has the same bits alone and among others."""
    alone = [embed([text])[0] for text in texts]
    for _ in range(6):
        chosen = random.sample(range(len(texts)), random.randint(2, len(texts)))
        company = embed([texts[text] for text in chosen])
        for row, text in zip(company, chosen, strict=True):
            assert torch.equal(row, alone[text]), f"text {text} of {chosen}"
