"""Descriptions of the built-in models for people; `engine.weights.source` finds their files."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """What a built-in model does, and the size of its download; 0 if the program contains it."""

    deed: str
    megabytes: int


BUILT_IN: Mapping[str, BuiltIn] = {
    "smollm2-135m-instruct": BuiltIn("chats", 93),
    "gemma-3-270m": BuiltIn("continues text", 238),
    "all-minilm-l6-v2": BuiltIn("makes embeddings", 84),
    "tandem-shapes": BuiltIn("draws and edits shapes", 0),
    "realesrgan-x4plus": BuiltIn("enlarges photographs", 46),
    "realesrgan-x4plus-anime": BuiltIn("enlarges drawings", 46),
    "realesr-animevideov3": BuiltIn("enlarges drawings, faster", 46),
    "u2netp": BuiltIn("removes backgrounds", 4),
}
