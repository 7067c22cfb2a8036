"""Measurements of tiny random models against transformers, which computes them in a few lines."""

import json
import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine.commands.quality.measurement import measure
from engine.commands.quality.scoring import divergence
from engine.contract.orders import MeasuringOrder
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory, InvalidParameter, ModelLoadError, UnsupportedFeature
from engine.processes.telling_host import TellingHost
from engine.weights.quality_record import measured_quality
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.quantization.measured_quality import KEPT

CONFIG = EngineConfig(device="cpu", dtype="float32", num_threads=1)
SIZE = 24


@pytest.fixture
def text(tmp_path):
    words = [
        "the quick",
        " brown fox",
        " 1984",
        "jumps {",
        "_over",
        "größe",
        " lazy\n  dog",
        " 你好",
    ]
    path = tmp_path / "text.txt"
    path.write_text("".join(random.choices(words, k=120)))
    return path


def order(model, text, **changes):
    values = {"model": str(model), "config": CONFIG, "cache_dir": text.parent}
    scored = {"text": text, "context": SIZE, "passages": 4}
    return MeasuringOrder(**{**values, **scored, **changes})


def measured(*arguments, **changes):
    return measure(order(*arguments, **changes), lambda message: None)


def distributions(folder, text, starts):
    """[N, V] log-probabilities and the N tokens scored, window by window."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id] * starts + ids
    rows, targets = [], []
    for at in range(0, 4 * SIZE, SIZE):
        window = ids[at : at + SIZE]
        if starts:
            window[0] = tokenizer.bos_token_id
        with torch.inference_mode():
            logprobs = model(torch.tensor([window])).logits[0].double().log_softmax(-1)
        rows.append(logprobs[SIZE // 2 : SIZE - 1])
        targets += window[SIZE // 2 + 1 :]
    return torch.cat(rows), targets


def with_start_token(folder):
    """A tokenizer that puts `<|im_start|>` before texts."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_start|>": {"id": "<|im_start|>", "ids": [0], "tokens": ["<|im_start|>"]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("starts", [False, True])
def test_perplexity_is_that_of_transformers(tiny_llama, text, starts):
    folder = tiny_llama(seed=random.randrange(1 << 16))
    if starts:
        with_start_token(folder)
    report = measured(folder, text)
    rows, targets = distributions(folder, text, starts)
    surprises = -rows[range(len(targets)), targets]
    assert report["tokens"] == len(targets) == 4 * (SIZE - SIZE // 2 - 1)
    assert report["perplexity"] == pytest.approx(float(surprises.mean().exp()), rel=1e-5)
    error = float(surprises.std() / math.sqrt(len(targets)) * surprises.mean().exp())
    assert report["perplexity_error"] == pytest.approx(error, rel=1e-4)
    assert report["passages"] == 4
    assert len(report["classes"]) >= 4


def test_layers_that_slide(tiny_gemma3, text):
    """Their window is no shorter than what is cached."""
    folder = tiny_gemma3(seed=random.randrange(1 << 16), sliding_window=8)
    rows, targets = distributions(folder, text, False)
    wanted = float((-rows[range(len(targets)), targets]).mean().exp())
    assert measured(folder, text)["perplexity"] == pytest.approx(wanted, rel=1e-4)


def rounded(folder, path, step):
    """A copy with weights of whole steps."""
    shutil.copytree(folder, path)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = (tensor / step).round() * step
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def test_the_divergence_of_a_rounded_model_is_that_of_transformers(tiny_llama, text, tmp_path):
    original = tiny_llama(seed=random.randrange(1 << 16))
    coarse = rounded(original, tmp_path / "coarse", 0.1)
    report = measured(coarse, text, against=str(original))
    ln_p, targets = distributions(original, text, False)
    ln_q, _ = distributions(coarse, text, False)
    divergences = (ln_p.exp() * (ln_p - ln_q)).sum(-1)
    assert report["kl_divergence"] == pytest.approx(float(divergences.mean()), rel=1e-3)
    assert report["kl_divergence"] > 0
    same = (ln_p.argmax(-1) == ln_q.argmax(-1)).double().mean()
    assert report["top1_agreement"] == pytest.approx(float(same), abs=1.5 / len(targets))
    wanted = float((-ln_p[range(len(targets)), targets]).mean().exp())
    assert report["original_perplexity"] == pytest.approx(wanted, rel=1e-5)
    fine = measured(rounded(original, tmp_path / "fine", 0.01), text, against=str(original))
    assert 0 < fine["kl_divergence"] < report["kl_divergence"]


def test_a_model_does_not_differ_from_itself(tiny_llama, text):
    folder = tiny_llama(seed=random.randrange(1 << 16))
    report = measured(folder, text, against=str(folder))
    assert (report["kl_divergence"], report["top1_agreement"]) == (0.0, 1.0)
    assert report["original_perplexity"] == report["perplexity"]
    assert all(one["kl_divergence"] == 0.0 for one in report["classes"].values())


def test_divergence_is_that_of_the_definition():
    logits, original = torch.randn(2, 5, 70) * 4
    p, q = original.double().softmax(-1), logits.double().softmax(-1)
    wanted = (p * (p / q).log()).sum(-1).float()
    torch.testing.assert_close(divergence(logits, original), wanted, atol=1e-5, rtol=1e-5)


def test_progress_is_told_passage_by_passage(tiny_llama, text):
    told = []
    report = measure(order(tiny_llama(), text), told.append)
    passages = [message for message in told if "passage" in message]
    assert [(one["passage"], one["of"]) for one in passages] == [(n, 4) for n in range(1, 5)]
    assert passages[-1]["perplexity"] == report["perplexity"]
    assert json.loads(json.dumps([*told, report]))


def test_other_tokens_cannot_be_compared(tiny_llama, text, tmp_path):
    folder = tiny_llama()
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(InvalidParameter, match=f"{vocab_size} tokens and the original"):
        measured(folder, text, against=str(tiny_llama(vocab_size=vocab_size + 8)))
    other = with_start_token(shutil.copytree(folder, tmp_path / "other"))
    with pytest.raises(InvalidParameter, match="different tokens"):
        measured(folder, text, against=str(other))


def test_what_cannot_be_measured_is_said(tiny_llama, text, tmp_path):
    folder = tiny_llama()
    with pytest.raises(InvalidParameter, match="smaller --context"):
        measured(folder, text, context=513)
    text.write_text("short")
    with pytest.raises(InvalidParameter, match="longer text"):
        measured(folder, text)
    with pytest.raises(UnsupportedFeature, match="makes images"):
        measured("tandem-shapes", text)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    broken = shutil.copytree(folder, tmp_path / "broken")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    text.write_text("the quick brown fox " * 40)
    with pytest.raises(ModelLoadError, match="not finite"):
        measured(broken, text)


def test_memory_that_is_not_there_is_refused():
    host = TellingHost(lambda message: None)
    assert host.reserve("cpu", "weights", 3, 5) == 2
    with pytest.raises(InsufficientMemory, match="weights take"):
        host.reserve("cpu", "weights", 6, 5)


def test_what_a_packed_cache_costs_is_measured(tiny_llama, text):
    """int8 has steps of 1/254 of a head's range, fp8 of 1/16 of each number."""
    folder = tiny_llama(seed=random.randrange(1 << 16), head_dim=64)
    found = {}
    for kind in ("int8", "fp8"):
        config = replace(CONFIG, kv_cache_dtype=kind)
        found[kind] = measured(folder, text, against=str(folder), config=config)["kl_divergence"]
    assert 0 < found["int8"] < found["fp8"] < 1


def test_a_result_is_saved_beside_the_model(tiny_llama, text, tmp_path):
    original = tiny_llama(seed=random.randrange(1 << 16))
    coarse = rounded(original, tmp_path / "coarse", 0.1)
    report = measured(coarse, text, against=str(original), save=True)
    assert report["saved_to"] == "tandem_quality.json"
    found = measured_quality(in_folder(coarse), KEPT)
    assert found.kl_divergence == report["kl_divergence"]
    assert (found.against, found.text) == (original.name, "text.txt")
    assert "saved_to" not in measured(original, text, save=True)
