"""Makes folders of random rerankers with tokenizers of their families, and scores by
transformers."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer

from tests.helpers.models.tiny_encoders import WORDS, make_encoder, write_wordpiece
from tests.helpers.models.tokenizer_kinds import byte_level

LONGEST = 96
_MODERN = {"local_attention": 16, "norm_eps": 1e-4}
_QWEN3 = {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "xlm_roberta": ("XLMRoberta", {"type_vocab_size": 1}),
    "modernbert_cls": ("ModernBert", _MODERN),
    "modernbert_mean": (
        "ModernBert",
        _MODERN
        | {
            "classifier_pooling": "mean",
            "classifier_bias": True,
            "classifier_activation": "silu",
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "qwen3": ("Qwen3", _QWEN3 | {"tie_word_embeddings": True}),
    "qwen3_untied": ("Qwen3", _QWEN3 | {"tie_word_embeddings": False}),
}
"""Classes of transformers, and their configuration."""

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def make_reranker(
    folder: Path, name: str, *, seed: int, head: str = "ForSequenceClassification", **more: Any
) -> Path:
    """A folder with one label, or with the head that is asked for; `more` changes its
    configuration."""
    family, sizes = FAMILIES[name]
    eos, pad = (2, 1) if family == "XLMRoberta" else (1, 2)
    longest = 600 if family == "Qwen3" else LONGEST
    wanted: dict[str, Any] = {
        "vocab_size": 1000,
        "max_position_embeddings": longest + (pad + 1) * ("Roberta" in family),
        "num_labels": 1,
        "bos_token_id": 0,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    if family == "ModernBert":
        wanted |= {"cls_token_id": 0, "sep_token_id": eos}
    make_encoder(folder, family, seed=seed, architecture=head, **wanted | sizes | more)
    names = ["input_ids", "attention_mask"]
    if family == "Bert":
        write_wordpiece(folder)
        raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
        names += ["token_type_ids"]
    else:
        raw = _tokenizer(family)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, model_input_names=names
    ).save_pretrained(folder)
    return folder


def _tokenizer(family: str) -> RawTokenizer:
    corpus = [WORDS, WORDS.title(), "yes no"] * 3
    raw = _unigram(corpus) if family == "XLMRoberta" else byte_level(corpus, rule="qwen2")
    if family == "Qwen3":
        special = ["<|im_start|>", "<|im_end|>"]
        raw.add_special_tokens([AddedToken(one, special=True) for one in special])
        raw.add_tokens(["yes", "no", "<think>", "</think>"])
    else:
        between = "</s>" if family == "ModernBert" else "</s> </s>"
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair=f"<s> $A {between} $B </s>",
            special_tokens=[(one, raw.token_to_id(one)) for one in ("<s>", "</s>")],
        )
    return raw


def _unigram(corpus: Sequence[str]) -> RawTokenizer:
    raw = RawTokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    return raw


def random_text(rng: random.Random, num_words: int) -> str:
    """Words, some of which the tokenizers do not know whole."""
    words = [*WORDS.split(), "Toxins,", "f0x", "ünïcode", "a\nb"]
    return " ".join(rng.choices(words, k=num_words))


class Reference:
    """transformers' model and tokenizer of a folder."""

    def __init__(self, folder: Path) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        self._has_head = "ForSequenceClassification" in config.architectures[0]
        self._has_prompt = config.model_type == "qwen3"
        self._tokenizer: Any = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        auto: Any = transformers.AutoModelForSequenceClassification
        if not self._has_head:
            auto = transformers.AutoModelForCausalLM
        self._model = auto.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def inputs(
        self, query: str, document: str, *, keep: int | None = None, task: str = TASK
    ) -> dict[str, list[int]]:
        """What the model gets for a pair, put together as its makers do."""
        encode = self._tokenizer
        if not self._has_prompt:
            cut = {} if keep is None else {"truncation": "longest_first", "max_length": keep}
            return dict(encode(query, document, **cut))
        before, after = (encode.encode(one, add_special_tokens=False) for one in (PREFIX, SUFFIX))
        middle = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
        ids = encode.encode(middle, add_special_tokens=False)
        room = len(ids) if keep is None else keep - len(before) - len(after)
        return {"input_ids": [*before, *ids[:room], *after]}

    def score(self, query: str, document: str, **how: Any) -> float:
        """The number for a pair; `how` as for `inputs`."""
        inputs = self.inputs(query, document, **how)
        with torch.no_grad():
            logits = self._model(**{k: torch.tensor([v]) for k, v in inputs.items()}).logits[0]
        if self._has_head:
            return float(logits[0])
        yes, no = self._tokenizer.convert_tokens_to_ids(["yes", "no"])
        return float(logits[-1, yes] - logits[-1, no])
