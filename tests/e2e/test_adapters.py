"""Adapters of a served model, chosen by their names with the official client."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
import transformers
from peft_adapters import write_adapter

pytestmark = pytest.mark.e2e
PROMPT = "The quick brown fox jumps over"


@pytest.fixture
def base(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture
def expected(base, tmp_path):
    """What transformers and PEFT write, by name; the adapters are in folders of their names."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])

    def text(model):
        found = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False)
        return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)

    texts = {"base": text(transformers.AutoModelForCausalLM.from_pretrained(base))}
    for seed, (name, rank) in enumerate((("poet", 4), ("judge", 9))):
        model = write_adapter(base, tmp_path / name, seed, r=rank)
        texts[name] = text(model)
    assert len(set(texts.values())) == len(texts)
    return texts


def test_adapters_are_chosen_by_model(start_server, base, expected, tmp_path):
    server = start_server(
        f"base={base}",
        *("--dtype", "float32", "--device", "cpu"),
        *(f"--lora={name}={tmp_path / name}" for name in ("poet", "judge", "nobody")),
    )
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        assert {name: card["parent"] for name, card in cards.items()} == {
            "base": None,
            "poet": "base",
            "judge": "base",
        }

        def complete(name):
            answer = client.completions.create(
                model=name, prompt=PROMPT, max_tokens=16, temperature=0
            )
            assert answer.model == name
            return name, answer.choices[0].text

        names = [*expected] * 6
        with ThreadPoolExecutor(len(names)) as pool:
            found = list(pool.map(complete, names))
        assert found == [(name, expected[name]) for name in names]

        def chat(name):
            stream = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=8,
                temperature=0,
                stream=True,
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        assert len({chat(name) for name in expected}) == len(expected)
        for name, reason in (("nobody", "adapter_config.json"), ("unheard of", "poet")):
            with pytest.raises(openai.NotFoundError, match=reason) as caught:
                complete(name)
            assert str(tmp_path) not in str(caught.value)
    assert "adapter failed to load" in server.log()
