"""The perplexity tool scores what transformers scores."""

import random

import pytest
import torch
import transformers

from engine.config import EngineConfig
from engine.llm.loading import load_engine
from engine.weights.source import Checkpoint
from tools import perplexity


def test_scores_are_log_probabilities_given_what_comes_before(tiny_llama):
    folder = tiny_llama(seed=5)
    config = EngineConfig(device="cpu", dtype="float32", num_threads=1, num_kv_blocks=16)
    engine, _ = load_engine(Checkpoint("folder", folder, "m"), "m", config, perplexity.Host())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [random.randrange(2, 60) for _ in range(40)]
    with torch.inference_mode():
        logprobs = theirs(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    wanted = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    found = perplexity.score(engine, "1", ids)
    assert found[0] == 0.0
    torch.testing.assert_close(torch.tensor(found[1:]), wanted, atol=1e-4, rtol=0)


def test_a_text_is_measured_in_whole_chunks(tiny_llama, tmp_path, monkeypatch, capsys):
    """Its result is the mean over the second halves."""
    folder = tiny_llama(seed=6)
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 20)
    arguments = ["--model", str(folder), "--context", "16", "--dtype", "float32", str(text)]
    monkeypatch.setattr("sys.argv", ["perplexity", *arguments])
    lengths = []
    monkeypatch.setattr(
        perplexity,
        "score",
        lambda engine, name, ids: lengths.append(len(ids)) or [-9.0] * 9 + [-2.0] * 7,
    )
    perplexity.main()
    printed = capsys.readouterr().out
    assert lengths
    assert set(lengths) == {16}
    assert float(printed.split("perplexity ")[1].split()[0]) == pytest.approx(2.718281828**2, 1e-4)
    assert f"over {7 * len(lengths)} tokens" in printed
