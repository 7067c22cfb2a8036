"""Chats with pictures through the whole engine, against transformers' processors and models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from engine.contract.picture_facts import Crop
from engine.pictures.crops import cut_crops
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint
from tests.helpers.llm.logits import logits_of, number_of_changes
from tests.helpers.models.tiny_wrappers import (
    CROP_KINDS,
    KINDS,
    SIDE,
    load_processor,
    make_wrapper,
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return make_wrapper(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


class Chat:
    """A text with pictures, as transformers' processor prepares it and as a request."""

    def __init__(self, engines, folder, kind, rng, name, pictures, **sampling):
        facts = load_model_config(Checkpoint("folder", folder, "m")).pictures
        words = ["".join(rng.choices("abcdefgh ", k=rng.randrange(1, 30))) for _ in pictures]
        text = "".join(f"{word}{facts.marker}" for word in words) + "."
        images = [Image.fromarray(picture) for picture in pictures]
        processor = load_processor(folder)
        if kind not in CROP_KINDS:  # its pictures are resized, which others do differently
            by_pillow = f"{type(processor.image_processor).__name__}Pil"
            processor.image_processor = getattr(transformers, by_pillow).from_pretrained(folder)
        # Of nested lists with several pictures, LLaVA-OneVision shows none in tiles.
        nested = images if kind == "llava_onevision" else [images]
        self.inputs = processor(text=text, images=nested, return_tensors="pt")
        prompt = self.inputs["input_ids"][0].tolist()
        states, places = [], [i for i, token in enumerate(prompt) if token == facts.placeholder_id]
        for picture in pictures:
            height, width, _ = picture.shape
            pieces = [p for p in facts.pieces(width, height) if isinstance(p, Crop)]
            crops = cut_crops(picture, pieces, facts.resampling)
            for piece, crop in zip(pieces, crops, strict=True):
                part = facts.black(piece, places[0])
                states.append(replace(part, content=crop.tobytes()))
                places = places[part.num_states :]
        assert not places
        # A next turn may repeat what is drawn.
        bias = {facts.placeholder_id: -100.0}
        sampling = {"max_tokens": 6, "ignore_eos": True, "logit_bias": bias} | sampling
        self.request = replace(engines.request(name, prompt, **sampling), states=tuple(states))

    @torch.inference_mode()
    def logits(self, model, output):
        """transformers' logits at the positions that predict `output`."""
        more = torch.tensor([output])
        inputs = dict(self.inputs)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], more), 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for name in {"token_type_ids", "mm_token_type_ids"} & inputs.keys():
            inputs[name] = torch.cat((inputs[name], torch.zeros_like(more)), 1)
        return model(**inputs).logits[0, len(self.request.prompt_token_ids) - 1 : -1]


def random_pictures(rng, kind, count):
    """Pictures that SmolVLM cuts into few or many crops, and that have many or few rows."""
    sizes = [(SIDE, SIDE), (3 * SIDE, SIDE), (70, 90), (11, 4)]
    chosen = [sizes[0] if kind == "gemma3" else rng.choice(sizes) for _ in range(count)]
    draws = np.random.default_rng(rng.randrange(1 << 31))
    return [draws.integers(0, 256, (height, width, 3), np.uint8) for width, height in chosen]


def test_logits_equal_those_of_transformers(engines, folder, kind, theirs, rng, log):
    chats = [
        Chat(engines, folder, kind, rng, str(i), random_pictures(rng, kind, i + 1))
        for i in range(2)
    ]
    smallest = 80 if kind == "gemma4_large" else 40  # its pictures are computed in one step
    engine = engines.make(folder, max_num_batched_tokens=rng.choice([smallest, 512]))
    arrivals = [0, rng.randrange(4)]
    done = engines.run(engine, [chat.request for chat in chats], arrivals=arrivals)
    for chat in chats:
        output = done[chat.request.request_id, 0].token_ids
        key = tuple(chat.request.prompt_token_ids), 0
        found = torch.stack([log.rows[(*key, i)] for i in range(len(output))])
        torch.testing.assert_close(found, chat.logits(theirs, output), atol=2e-3, rtol=1e-3)


@pytest.mark.drawn(6)
def test_the_next_turn_finds_the_pictures_of_the_last(engines, folder, kind, rng, log):
    pictures = random_pictures(rng, kind, 2)
    chat = Chat(engines, folder, kind, rng, "first", pictures)
    engine = engines.make(folder)
    first = engines.run(engine, [chat.request])["first", 0]
    known = [*chat.request.prompt_token_ids, *first.token_ids]
    second = engines.request("second", [*known, *known[:1] * 3], max_tokens=4, ignore_eos=True)
    second = replace(second, states=chat.request.states)
    done = {}
    found = logits_of(log, lambda: done.update(engines.run(engine, [second])))
    assert done["second", 0].num_cached_tokens >= (len(known) - 1) // 16 * 16
    alone = engines.make(folder, enable_prefix_caching=False)
    expected = logits_of(log, lambda: engines.run(alone, [second]))
    assert number_of_changes(found, expected) == 0
