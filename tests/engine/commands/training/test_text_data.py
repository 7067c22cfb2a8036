"""Examples of texts: what is learned of them, in the tokens that the server uses."""

import json

import pytest

from engine.commands.training.text_data import TextReader
from engine.errors import InvalidParameter
from engine.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return load_tokenizer(tiny_llama())


@pytest.fixture
def read(tokenizer, tmp_path):
    def read(*lines, max_length=200):
        path = tmp_path / "data.jsonl"
        path.write_text(
            "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        )
        return TextReader(tokenizer, max_length).read(path)

    return read


def learned(tokenizer, example):
    return tokenizer.decode(example.token_ids[example.first_learned :], skip_special_tokens=False)


def test_the_answer_of_a_conversation_is_learned_to_its_end(read, tokenizer):
    messages = [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "More?"},
        {"role": "assistant", "content": "No."},
    ]
    (example,) = read({"messages": messages}).examples
    whole = tokenizer.decode(example.token_ids, skip_special_tokens=False)
    assert whole.startswith("<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nYes.")
    assert learned(tokenizer, example) == "No.<|im_end|>\n"


def test_a_completion_and_a_text_end_as_the_model_ends(read, tokenizer):
    completion, text = read({"prompt": "One", "completion": " two"}, {"text": "One two"}).examples
    end = tokenizer.eos_token_ids[0]
    assert completion.token_ids[-1] == text.token_ids[-1] == end
    assert learned(tokenizer, completion).startswith(" two")
    assert text.first_learned == 1


def test_long_texts_are_cut_and_counted(read):
    found = read({"text": "ab " * 50}, {"text": "ab"}, max_length=20)
    assert [len(example.token_ids) <= 20 for example in found.examples] == [True, True]
    assert found.num_cut == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nothing", "line 2 of the data: an example must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
        ({"question": 1}, "this one has question"),
        ({"text": ""}, "needs messages"),
        ({"messages": []}, "needs messages"),
        ({"messages": ["a"]}, "an object with role"),
        ({"messages": [{"role": "user", "content": "a"}]}, "role must be assistant"),
        ({"prompt": "ab " * 99, "completion": "a"}, "beyond --max-length, which is 30; raise"),
    ],
)
def test_a_line_that_is_no_example_is_named(read, line, words):
    with pytest.raises(InvalidParameter) as error:
        read({"text": "fine"}, line, max_length=30)
    assert "line 2" in error.value.message
    assert words in error.value.message


def test_files_that_are_none(read, tokenizer, tmp_path):
    reader = TextReader(tokenizer, 10)
    with pytest.raises(InvalidParameter, match="no example"):
        read("", "  ")
    with pytest.raises(InvalidParameter, match="cannot be read"):
        reader.read(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidParameter, match="UTF-8"):
        reader.read(tmp_path / "binary")
