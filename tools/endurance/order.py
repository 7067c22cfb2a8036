"""Requests that have one right answer: the same body must always bring the same bits."""

import base64
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from loadtest.prompts import story_prompt

NUM_VARIANTS = 12
"""Bodies of each kind. Few, so that each is asked often and its answers can be compared."""
_CITY_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}
_SCENES = ("a red circle", "a large blue star", "a green square on a white background")


@dataclass(frozen=True, slots=True)
class Names:
    """What the server calls its models and adapters. None: it has no such model."""

    text: str
    image: str
    adapter: str
    visitor: str
    """A text model that comes and goes."""
    visiting_adapter: str
    upscaler: str | None = None
    matting: str | None = None

    @property
    def models(self) -> list[str]:
        """The models that are served from the start."""
        every = (self.text, self.image, self.upscaler, self.matting)
        return [name for name in every if name]


@dataclass(frozen=True, slots=True)
class Order:
    """A request. `statuses` are those that are right: other than 200 for bad input."""

    kind: str
    number: int
    path: str
    body: dict[str, Any] | bytes
    statuses: tuple[int, ...] = (200,)

    @property
    def key(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def streams(self) -> bool:
        """Whether its answer can also be asked for as a stream."""
        return self.kind in STREAMED


class Catalogue:
    """All orders of a run. The same seed gives the same orders."""

    def __init__(self, seed: int, names: Names) -> None:
        self._seed = seed
        self.names = names
        self._kinds: dict[str, Callable[[random.Random], tuple[str, dict[str, Any]]]] = {
            "text": self._text,
            "chat": self._chat,
            "tools": self._tools,
            "structure": self._structure,
            "adapter": lambda rng: self._text(rng, names.adapter),
            "embedding": self._embedding,
            "picture": self._picture,
            "edit": self._edit,
            "visitor": lambda rng: self._text(rng, names.visitor),
            "visiting adapter": lambda rng: self._text(rng, names.visiting_adapter),
        }
        if names.upscaler and names.matting:
            self._kinds["chain"] = self._chain

    @property
    def kinds(self) -> list[str]:
        """The kinds of order that models of the start answer."""
        return [kind for kind in self._kinds if not kind.startswith("visit")]

    def order(self, kind: str, number: int) -> Order:
        """One of the NUM_VARIANTS orders of a kind, or a bad one of the kind `bad`."""
        if kind == "bad":
            path, body, statuses = self._bad()[number % len(self._bad())]
            return Order(kind, number, path, body, statuses)
        rng = random.Random(f"{self._seed} {kind} {number}")
        path, fields = self._kinds[kind](rng)
        return Order(kind, number, path, fields)

    @property
    def num_bad(self) -> int:
        return len(self._bad())

    def _text(self, rng: random.Random, model: str | None = None) -> tuple[str, dict[str, Any]]:
        num_words = rng.choice([5, 20, 60, 250])
        return "/v1/completions", {
            "model": model or self.names.text,
            "prompt": story_prompt(rng.randrange(4), num_words),  # some begin alike
            "max_tokens": rng.choice([8, 24, 64]),
            "logprobs": 1,
            **self._sampling(rng),
        }

    def _chat(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "user", "content": story_prompt(rng.randrange(4), 15)}]
        if rng.random() < 0.5:
            messages += [
                {"role": "assistant", "content": "Once upon a time."},
                {"role": "user", "content": "Go on."},
            ]
        return "/v1/chat/completions", {
            "model": self.names.text,
            "messages": messages,
            "max_tokens": 40,
            "logprobs": True,
            **self._sampling(rng),
        }

    def _tools(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        city = rng.choice(["Paris", "Lima", "Oslo", "Accra"])
        return "/v1/chat/completions", {
            "model": self.names.text,
            "messages": [{"role": "user", "content": f"What is the weather in {city}?"}],
            "tools": [_CITY_TOOL],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": 60,
            **self._sampling(rng),
        }

    def _structure(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        properties = {
            "name": {"type": "string", "maxLength": rng.choice([5, 9])},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        }
        schema = {"type": "object", "properties": properties, "required": ["name", "age"]}
        structure: dict[str, Any] = rng.choice(
            [
                {"structured_outputs": {"regex": "[a-c]{3,8} [0-9]+"}},
                {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}},
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "person", "schema": schema},
                    }
                },
            ]
        )
        return "/v1/chat/completions", {
            "model": self.names.text,
            "messages": [{"role": "user", "content": story_prompt(rng.randrange(4), 8)}],
            "max_tokens": 48,
            **structure,
            **self._sampling(rng),
        }

    def _embedding(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        texts = [story_prompt(rng.randrange(100), rng.randint(3, 40)) for _ in range(3)]
        return "/v1/embeddings", {"model": self.names.text, "input": texts}

    def _picture(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        return "/v1/images/generations", {
            "model": self.names.image,
            "prompt": rng.choice(_SCENES),
            "size": rng.choice(["64x64", "128x128"]),
            "steps": rng.randint(2, 6),
            "seed": rng.randrange(2**31),
        }

    def _edit(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        return "/v1/images/edits", {
            "model": self.names.image,
            "prompt": rng.choice(_SCENES),
            "images": [{"image_url": _data_url(rng)}],
            "task": "image_to_image",
            "steps": 5,
            "seed": rng.randrange(2**31),
        }

    def _chain(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        path, body = self._picture(rng)
        stages: list[dict[str, Any]] = [
            {"operation": "enlarge", "model": self.names.upscaler, "scale": 2}
        ]
        if rng.random() < 0.5:
            stages.append({"operation": "matte", "model": self.names.matting})
        return path, body | {"size": "64x64", "then": stages}

    @staticmethod
    def _sampling(rng: random.Random) -> dict[str, Any]:
        return {"seed": rng.randrange(2**31), "temperature": rng.choice([0, 0.8, 1.2])}

    def _bad(self) -> list[tuple[str, dict[str, Any] | bytes, tuple[int, ...]]]:
        """Bodies that must be refused, each with the right statuses."""
        text, image = {"model": self.names.text}, {"model": self.names.image}
        completions, chat = "/v1/completions", "/v1/chat/completions"
        pictures = "/v1/images/generations"
        user = {"role": "user", "content": "a"}
        return [
            (completions, b'{"prompt": "a", ', (400,)),
            (completions, b"\xff\xfe\x00", (400,)),
            (completions, b"[" * 5000, (400,)),
            (completions, {"model": "nowhere", "prompt": "a"}, (404,)),
            (completions, text | {"prompt": "a", "max_tokens": -5}, (400,)),
            (completions, text | {"prompt": "a", "temperature": "hot"}, (400,)),
            (completions, text | {"prompt": "a " * 200_000}, (400,)),
            (completions, text | {"prompt": [10**9]}, (400,)),
            (completions, text | {"prompt": "a", "n": 1000}, (400,)),
            (completions, image | {"prompt": "a"}, (400,)),
            (chat, text | {"messages": []}, (400,)),
            (chat, text | {"messages": [{"role": "wizard", "content": "a"}]}, (400,)),
            (chat, text | {"messages": [user], "response_format": {"type": "rhyme"}}, (400,)),
            (
                chat,
                text | {"messages": [user], "structured_outputs": {"regex": "(" * 50}},
                (400,),
            ),
            (pictures, image | {"prompt": "a", "size": "7x9"}, (400,)),
            (pictures, image | {"prompt": "a", "steps": 10**6}, (400,)),
            (
                "/v1/images/edits",
                image | {"prompt": "a", "images": [{"image_url": "data:image/png;base64,AAAA"}]},
                (400,),
            ),
            ("/v1/threads", {}, (404,)),
        ]


STREAMED = frozenset(
    {"text", "chat", "tools", "structure", "adapter", "picture", "visitor", "visiting adapter"}
)


def _data_url(rng: random.Random) -> str:
    colour = tuple(rng.randrange(256) for _ in range(3))
    return data_url(Image.new("RGB", (64, 64), colour))


def data_url(picture: Image.Image) -> str:
    """A picture as clients send it in JSON."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
