"""Texts of a given form, by whole engines: what comes out fits, whatever shares the step."""

import json
import re

import jsonschema
import pytest

from engine.contract.request import FinishReason
from engine.contract.structure import Structure, StructureKind, Tag, Tags
from engine.errors import InvalidParameter
from engine.llm.structure import mask
from engine.text.tokenizer import load_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "dark blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
CALL = Tag(
    '<call>{"name": "f", "arguments": ',
    {
        "type": "object",
        "properties": {"x": {"type": "boolean"}},
        "required": ["x"],
        "additionalProperties": False,
    },
    "}</call>",
)


def of(kind, text):
    return Structure(StructureKind(kind), text)


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=3)


@pytest.fixture(scope="module")
def engine(engines, folder):
    return engines.make(folder, num_kv_blocks=512)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def requests_for(engines, rng, structure, name="r", **sampling):
    prompt = [rng.randrange(2, 400) for _ in range(rng.randrange(1, 40))]
    return engines.request(
        name, prompt, structure=structure, **({"seed": 5, "max_tokens": 150} | sampling)
    )


def texts(engines, engine, tokenizer, requests):
    done = engines.run(engine, requests)
    return {key: (tokenizer.decode(c.token_ids), c.finish_reason) for key, c in done.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_json_fits_its_schema(engines, engine, tokenizer, rng, temperature):
    asked = Structure.of_schema(PERSON)
    request = requests_for(engines, rng, asked, temperature=temperature, n=3, max_tokens=400)
    for text, reason in texts(engines, engine, tokenizer, [request]).values():
        assert reason is FinishReason.STOP, text
        jsonschema.validate(json.loads(text), PERSON)


def random_schema(rng, depth=0):
    """Make a schema from the keywords that are honoured."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "date"]
    match rng.choice(kinds if depth > 2 else [*kinds, *["object", "array", "tuple", "any"] * 3]):
        case "string":
            return {
                "type": "string",
                "minLength": rng.randrange(3),
                "maxLength": 3 + rng.randrange(5),
            }
        case "integer":
            low = rng.randrange(-500, 500)
            return {
                "type": "integer",
                "minimum": low,
                "exclusiveMaximum": low + rng.randrange(1, 999),
            }
        case "number":
            low = rng.randrange(-50, 50)
            return {"type": "number", "minimum": low, "maximum": low + rng.randrange(1, 99)}
        case "enum":
            return {"enum": rng.sample([1, "a", None, True, 2.5, "ä\n", [1], {"x": "y"}], 3)}
        case "const":
            return {"const": rng.choice(["", "c", 7, [], {}])}
        case "pattern":
            return {
                "type": "string",
                "pattern": rng.choice(["^[a-f]{2,4}$", "^x|y$", "^[0-9]{3}$"]),
            }
        case "date":
            return {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4"])}
        case "object":
            names = rng.sample(
                ["a", "b", "with space", "é", 'quo"te', "nested"], rng.randrange(1, 5)
            )
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": rng.sample(names, rng.randrange(len(names) + 1)),
                "additionalProperties": False,
            }
        case "array":
            least = rng.randrange(2)
            return {
                "type": "array",
                "items": random_schema(rng, depth + 1),
                "minItems": least,
                "maxItems": least + 1,
            }
        case "tuple":
            first = [random_schema(rng, depth + 1) for _ in range(2)]
            return {"type": "array", "prefixItems": first, "items": False, "minItems": 2}
        case "any":
            return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
        case kind:
            return {"type": kind}


@pytest.mark.parametrize("is_compact", [False, True])
def test_random_schemas_are_followed(engines, engine, tokenizer, rng, is_compact):
    """Another implementation judges the texts."""
    schemas = [random_schema(rng) for _ in range(12)]
    requests = [
        requests_for(
            engines, rng, Structure.of_schema(schema, is_compact=is_compact), f"r{i}",
            temperature=rng.choice([0.0, 1.0, 2.0]), seed=i,
        )
        for i, schema in enumerate(schemas)
    ]  # fmt: skip
    num_complete = 0
    for (name, _), (text, reason) in texts(engines, engine, tokenizer, requests).items():
        if reason is FinishReason.LENGTH:
            continue
        num_complete += 1
        schema = schemas[int(name[1:])]
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    assert num_complete


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [
        (of("regex", "[a-f]{3,9}[!?]"), "[a-f]{3,9}[!?]"),
        (Structure.of_choice(["yes", 'a "quoted" one', "ä\n\t"]), 'yes|a "quoted" one|ä\n\t'),
        (of("grammar", 'root ::= "a" b+ "z"\nb ::= [0-4]'), "a[0-4]+z"),
        (of("grammar", 'start: "a" B+ "z"\nB: /[0-4]/'), "a[0-4]+z"),
        (Tags(tags=[CALL], triggers=["<call>"], at_least_one=True, at_most_one=True).structure(),
         r'(.|\n)*<call>\{"name": "f", "arguments": (.|\n)*\}</call>'),
        (Tags(tags=[CALL], triggers=[], has_text=False, at_most_one=True).structure(),
         r'<call>\{"name": "f", "arguments": (.|\n)*\}</call>'),
        (Tags(tags=[CALL], triggers=[], has_text=False, answer={"enum": [7]}).structure(),
         r'(<call>\{"name": "f", "arguments": (.|\n)*\}</call>)+|7'),
    ],
)  # fmt: skip
def test_text_matches(engines, engine, tokenizer, rng, structure, pattern):
    request = requests_for(engines, rng, structure, temperature=1.0, n=4)
    for text, reason in texts(engines, engine, tokenizer, [request]).values():
        if reason is FinishReason.STOP:
            assert re.fullmatch(pattern, text), text
        else:
            assert reason is FinishReason.LENGTH


def test_free_text_is_free_until_a_trigger(engines, engine, tokenizer, rng):
    """Special tokens, too, may be drawn there."""
    structure = Tags(tags=[CALL], triggers=["<call>"]).structure()
    bias = dict.fromkeys(tokenizer.encode("<call>")[:1], 30.0)
    request = requests_for(engines, rng, structure, temperature=1.0, n=4, logit_bias=bias)
    for text, _ in texts(engines, engine, tokenizer, [request]).values():
        for after in text.split("<call>")[1:]:
            assert CALL.begin.removeprefix("<call>").startswith(after[:10])


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#"}, "no text fits it"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(engines, engine, rng, schema, said):
    asked = Structure.of_schema(schema, param="response_format")
    engine.add(requests_for(engines, rng, asked, n=2))
    engine.add(requests_for(engines, rng, None, name="other"))
    events = []
    while engine.has_work():
        events += engine.step()[0]
    failures = [event.failure for event in events if event.failure is not None]
    assert len(failures) == 2
    assert said in failures[0].message
    assert failures[0].param == "response_format"
    assert any(event.request_id == "other" and event.token_ids for event in events)


def test_complete_text_ends_before_min_tokens(engines, engine, tokenizer, rng):
    request = requests_for(engines, rng, Structure.of_choice(["yes", "no"]), min_tokens=50)
    [(text, reason)] = texts(engines, engine, tokenizer, [request]).values()
    assert text in ("yes", "no")
    assert reason is FinishReason.STOP


def test_min_tokens_lets_a_text_go_on(engines, engine, tokenizer, rng):
    request = requests_for(engines, rng, of("regex", "a+"), min_tokens=30, temperature=1.0, n=4)
    for (_, _), done in engines.run(engine, [request]).items():
        assert len(done.token_ids) > 30


def test_max_tokens_is_length(engines, engine, tokenizer, rng):
    prompt = [5, 6, 7]
    request = engines.request("r", prompt, structure=Structure.of_schema(PERSON), max_tokens=4)
    [(_, reason)] = texts(engines, engine, tokenizer, [request]).values()
    assert reason is FinishReason.LENGTH


def mixed_requests(engines, rng):
    structures = [
        None,
        Structure.of_schema(PERSON),
        Structure.of_schema(PERSON, is_compact=True),
        of("regex", "([a-z]+ ){2,9}"),
        Tags(tags=[CALL], triggers=["<call>"]).structure(),
    ]
    return [
        requests_for(
            engines, rng, structures[i % 5], f"r{i}", temperature=1.0, seed=i, n=2, logprobs=1,
            presence_penalty=0.4 * (i % 3), top_p=0.9, min_tokens=7 * (i % 2),
        )
        for i in range(5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_speculative_tokens": 5},
        {"async_scheduling": True},
        {"num_kv_blocks": 40, "max_num_seqs": 3, "max_num_batched_tokens": 24},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_nothing_around_a_text_changes_it(engines, engine, folder, rng, changes):
    """Neighbours with and without a structure, drafts, preemption and cached prompts do not."""
    requests = mixed_requests(engines, rng)
    alone = {}
    for request in requests:
        alone |= engines.run(engine, [request])
    other = engines.make(folder, **({"num_kv_blocks": 512} | changes))
    arrivals = [rng.randrange(9) for _ in requests]
    for arrivals_ in ([0] * len(requests), arrivals):
        for key, one in engines.run(other, requests, arrivals=arrivals_).items():
            assert one.token_ids == alone[key].token_ids
            assert one.logprobs == alone[key].logprobs
            assert one.finish_reason is alone[key].finish_reason


def test_what_is_forced_takes_no_step(engines, folder, rng):
    """It is what would have been drawn, so such a draft is always right."""
    engine = engines.make(folder)
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    for i in range(5):
        schema["properties"][f"a rather long name, {i}"] = {"type": "boolean"}
        schema["required"].append(f"a rather long name, {i}")
    request = requests_for(engines, rng, Structure.of_schema(schema, is_compact=True))
    [done] = engines.run(engine, [request]).values()
    stats = engine.stats()
    assert done.finish_reason is FinishReason.STOP
    assert stats.num_accepted_tokens == stats.num_draft_tokens > len(done.token_ids) / 2
    assert stats.num_steps < len(done.token_ids) / 2


def test_what_takes_too_long_ends_alone(engines, engine, rng, monkeypatch):
    monkeypatch.setattr(mask, "SECONDS_PER_TOKEN", -1.0)
    slow = requests_for(engines, rng, Structure.of_schema(PERSON, param="grammar"), "slow")
    engine.add(slow)
    engine.add(requests_for(engines, rng, None, "other"))
    events = []
    while engine.has_work():
        events += engine.step()[0]
    [failure] = [event.failure for event in events if event.failure is not None]
    assert failure.param == "grammar" and "too long" in failure.message
    assert any(event.request_id == "other" and event.token_ids for event in events)


def test_an_aborted_request_is_forgotten_while_its_grammar_is_made(engines, engine, rng):
    request = requests_for(engines, rng, of("regex", f"[a-z]{{{rng.randrange(9, 999)}}}"))
    engine.add(request)
    with pytest.raises(InvalidParameter, match="is running"):
        engine.add(request)
    engine.abort(request.request_id)
    assert not engine.has_work()
    [(_, reason)] = [
        (d.token_ids, d.finish_reason) for d in engines.run(engine, [request]).values()
    ]
    assert reason is not None


def test_ignore_eos_is_refused(engines, engine):
    structure = Structure.of_choice(["a"], param="structured_outputs")
    with pytest.raises(InvalidParameter, match="structured_outputs"):
        engine.add(engines.request("r", [1], structure=structure, ignore_eos=True))
