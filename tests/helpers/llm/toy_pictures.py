"""A toy encoder that makes any small decoder a model that sees pictures, and prompts with them."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.contract.generate import GenerateRequest
from engine.contract.prompt_states import StatePart
from engine.llm.kept_states import KeptStates
from engine.llm.start import loading
from engine.models.picture_encoder import Encoding
from engine.weights.decoder import load_decoder
from engine.weights.loader import load_model_config
from tests.helpers.llm.paged_executor import picture_facts

SIDE, ROWS = 6, 9
"""Pictures of 108 numbers, 12 for each of their 9 rows: blocks of 16 begin within them."""
COLUMNS = 3
"""How many of these rows lie side by side in models whose positions have axes."""
PLACEHOLDER = 399


class ToyEncoder:
    """A product of a picture's numbers and a fixed matrix, picture by picture.

    Args:
        fails_for: the content of a picture that cannot be encoded.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype, fails_for: bytes = b"") -> None:
        generator = torch.Generator().manual_seed(hidden_size)
        self._matrix = torch.randn(3 * SIDE**2 // ROWS, hidden_size, generator=generator)
        self._dtype = dtype
        self._fails_for = fails_for
        self.num_encoded = 0

    def begin(self, pixels: Tensor, shape: tuple[int, int] | None = None) -> Encoding:
        self.num_encoded += 1
        states = self.encode(pixels)
        for row in range(len(states)):  # a slice for each row, and one for the end
            states[row] *= 1.0
            yield
        return states

    def encode(self, pixels: Tensor) -> Tensor:
        if bytes(pixels.flatten().tolist()) == self._fails_for:
            raise RuntimeError("this picture breaks the encoder")
        numbers = pixels.reshape(-1, len(self._matrix)).float() / 255 - 0.5
        return (numbers @ self._matrix).to(self._dtype)


def give_sight(
    monkeypatch: pytest.MonkeyPatch,
    *,
    looks_both_ways: bool = False,
    has_axes: bool = False,
    parts_lines: bool = False,
    fails_for: bytes = b"",
    num_slices: int | None = None,
) -> list[ToyEncoder]:
    """Give engines that are loaded from now on a `ToyEncoder`. Returns a list of the encoders, to
    which each new one is added.

    Args:
        has_axes: whether the rows of pictures are a grid, along which positions have axes.
        parts_lines: whether they are a grid with a token between its lines.
        num_slices: in how many slices the scheduler plans an encoding; by default drawn.
    """
    planned = num_slices or random.choice([1, ROWS + 1])
    of_grids: dict[str, Any] = {
        "side": SIDE // COLUMNS,
        "pixel_bounds": (SIDE**2, SIDE**2),
        "has_axes": has_axes,
        "line_end": "<line>" if parts_lines else None,
    }
    has_grids = has_axes or parts_lines
    facts = picture_facts(
        1 if has_grids else ROWS,
        looks_both_ways=looks_both_ways,
        placeholder_id=PLACEHOLDER,
        **(of_grids if has_grids else {"side": SIDE}),
    )
    axes = tuple(random.choices(range(3), k=64))
    encoders: list[ToyEncoder] = []

    def with_facts(*args: Any, **kwargs: Any) -> Any:
        config = load_model_config(*args, **kwargs)
        half = (config.rotary_dim or config.head_dim) // 2
        chosen = axes[:half] if has_axes else ()
        return replace(config, pictures=facts, rope_axes=chosen)

    def with_slices(*args: Any) -> KeptStates:
        return KeptStates(3, facts, lambda part: planned)

    def with_encoder(*args: Any, **kwargs: Any) -> Any:
        model = load_decoder(*args, **kwargs)
        encoder = ToyEncoder(model.config.hidden_size, model.options.dtype, fails_for)
        model.picture_encoder = encoder
        encoders.append(encoder)
        return model

    monkeypatch.setattr(loading, "load_model_config", with_facts)
    monkeypatch.setattr(loading, "load_decoder", with_encoder)
    monkeypatch.setattr(loading, "kept_states", with_slices)
    return encoders


def random_picture(rng: random.Random) -> bytes:
    return rng.randbytes(3 * SIDE**2)


def prompt_with(
    text: Sequence[int], pictures: Iterable[tuple[int, bytes]]
) -> tuple[list[int], tuple[StatePart, ...]]:
    """Put pictures into a text, each behind as many of its tokens as it says, in order."""
    prompt, parts, taken = [], [], 0
    for place, content in pictures:
        prompt += text[taken:place]
        taken = place
        parts.append(StatePart(start=len(prompt), length=ROWS, content=content))
        prompt += [PLACEHOLDER] * ROWS
    return [*prompt, *text[taken:]], tuple(parts)


def seeing(request: GenerateRequest, pictures: Iterable[tuple[int, bytes]]) -> GenerateRequest:
    """The request with pictures put into its prompt."""
    prompt, states = prompt_with(request.prompt_token_ids, pictures)
    return replace(request, prompt_token_ids=prompt, states=states)


def with_grids(request: GenerateRequest) -> GenerateRequest:
    """The request with the rows of its pictures in a grid."""
    states = tuple(
        replace(part, columns=COLUMNS, width=SIDE, has_axes=True) for part in request.states
    )
    return replace(request, states=states)


def with_lines(request: GenerateRequest) -> GenerateRequest:
    """The request with a token between the lines of its pictures."""
    prompt, states = list(request.prompt_token_ids), []
    for number, part in enumerate(request.states):
        start = part.start + number * (ROWS // COLUMNS - 1)
        for place in range(start + COLUMNS, start + ROWS + 1, COLUMNS + 1):
            prompt.insert(place, 7)
        length = ROWS + ROWS // COLUMNS - 1
        changes: dict[str, Any] = {
            "start": start,
            "length": length,
            "columns": COLUMNS,
            "width": SIDE,
            "parts_lines": True,
        }
        states.append(replace(part, **changes))
    return replace(request, prompt_token_ids=prompt, states=tuple(states))


@torch.inference_mode()
def reference_logits(
    model: Any, request: GenerateRequest, output: Sequence[int], masks: Any = None
) -> Tensor:
    """transformers' logits at the positions that predict `output`: [len(output), V].

    Args:
        masks: makes the attention masks from the number of tokens and the parts; None for causal
            ones.
    """
    prompt = request.prompt_token_ids
    token_ids = torch.tensor([[*prompt, *output]])
    embedded = model.get_input_embeddings()(token_ids)
    encoder = ToyEncoder(embedded.shape[-1], embedded.dtype)
    for part in request.states:
        pixels = torch.tensor(list(part.content), dtype=torch.uint8)
        states = encoder.encode(pixels.view(SIDE, SIDE, 3))
        for row, state, number in part.stretches(0, len(prompt)):
            embedded[:, row : row + number] = states[state : state + number]
    given = {} if masks is None else {"attention_mask": masks(token_ids.shape[1], request.states)}
    logits: Tensor = model(inputs_embeds=embedded, **given).logits
    return logits[0, len(prompt) - 1 : -1].float()
