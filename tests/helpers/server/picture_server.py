"""A server of a scripted text model that sees pictures, and the bodies that show it some."""

import base64
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.contract.picture_facts import PictureFacts
from tests.helpers.server.text_server import TextServer, text_info, write_tokenizer

FACTS = PictureFacts(
    side=8,
    rows_per_crop=3,
    marker="<pic>",
    placeholder="<ph>",
    placeholder_id=3,
    resampling="bilinear",
    before="<pic>",
    after="<end>",
    longest_edge=16,
    before_cell="<cell>",
)
FACTS_OF_ANY_SIZE = PictureFacts(
    side=8,
    rows_per_crop=1,
    marker="<pic>",
    placeholder="<ph>",
    placeholder_id=3,
    resampling="bicubic",
    before="<pic>",
    after="<end>",
    pixel_bounds=(3 * 8**2, 20 * 8**2),
)
FACTS_WITH_LINES = replace(FACTS_OF_ANY_SIZE, pixel_bounds=None, longest_side=30, line_end="<cell>")
FACTS_WITH_MOSAICS = replace(
    FACTS, rows_per_crop=4, longest_edge=None, before_cell=None, mosaics=((16, 24), (24, 8))
)
LIST_TEMPLATE = (
    "{% for m in messages %}<|s|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<pic>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
STRING_TEMPLATE = (
    "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
Body = Callable[[Sequence[str]], dict[str, Any]]
"""Makes a body of one user's message: pictures, then a question."""


def picture_server(
    folder: Path, template: str = LIST_TEMPLATE, facts: PictureFacts = FACTS, **settings: Any
) -> TextServer:
    """Serve a model that sees pictures, whose tokenizer is written into a new folder."""
    folder = folder / f"tokenizer{random.randrange(1 << 30)}"
    folder.mkdir()
    tokens = (FACTS.marker, FACTS.placeholder, FACTS.after, str(FACTS.before_cell))
    write_tokenizer(folder, chat_template=template, more_tokens=tokens)
    return TextServer(folder, text_info(folder, pictures=facts), **settings)


def noise(width: int = 0, height: int = 0, mode: str = "RGB") -> Image.Image:
    """Draw a picture of noise, of a random size if none is given."""
    width, height = width or random.randint(1, 40), height or random.randint(1, 40)
    rng = np.random.default_rng(random.randrange(1 << 30))
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> str:
    """The file of a picture, in base64."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return base64.b64encode(file.getvalue()).decode()


def data_url(encoded: str) -> str:
    return f"data:image/png;base64,{encoded}"


def _user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]


def _source(file: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": file}
    return {"type": "image", "source": source}


@dataclass(frozen=True)
class Route:
    """A way to show pictures to a model.

    Attributes:
        counts: the route that counts the same body's tokens, and the field of its answer.
    """

    path: str
    body: Body
    counts: tuple[str, str] | None = None


ROUTES = {
    "chat": Route(
        "/v1/chat/completions",
        lambda files: {
            "messages": _user(
                *[
                    {"type": "image_url", "image_url": {"url": data_url(file), "detail": "low"}}
                    for file in files
                ]
            )
        },
        ("/tokenize", "count"),
    ),
    "bare strings": Route(
        "/v1/chat/completions",
        lambda files: {
            "messages": _user(*[{"type": "image_url", "image_url": data_url(f)} for f in files])
        },
        ("/tokenize", "count"),
    ),
    "responses": Route(
        "/v1/responses",
        lambda files: {
            "max_output_tokens": 5,
            "input": [
                {
                    "role": "user",
                    "content": [
                        *[{"type": "input_image", "image_url": data_url(f)} for f in files],
                        {"type": "input_text", "text": "what?"},
                    ],
                }
            ],
        },
        ("/v1/responses/input_tokens", "input_tokens"),
    ),
    "anthropic": Route(
        "/v1/messages",
        lambda files: {"max_tokens": 5, "messages": _user(*map(_source, files))},
        ("/v1/messages/count_tokens", "input_tokens"),
    ),
    "ollama chat": Route(
        "/api/chat",
        lambda files: {
            "messages": [{"role": "user", "content": "what?", "images": list(files)}],
            "stream": False,
        },
    ),
    "ollama generate": Route(
        "/api/generate", lambda files: {"prompt": "what?", "images": list(files), "stream": False}
    ),
}
"""All ways to show pictures, which lead to the same prompt."""
