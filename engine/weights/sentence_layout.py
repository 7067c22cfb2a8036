"""Reads from sentence-transformers' files, or a GGUF file, how hidden states become one embedding.

`modules.json` names the steps after the transformer, each with a folder of its own. A folder of an
encoder without this file is treated as in sentence-transformers, with the mean of all tokens; its
embeddings get length 1, as clients of OpenAI expect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import PoolingType

from engine.errors import CorruptFile, UnsupportedArchitecture
from engine.files.checkpoint_files import parse_json_list, read_bounded, read_optional_json
from engine.files.gguf_header import read_gguf_header
from engine.models.metadata_keys import MetadataKeys
from engine.models.sentence_encoder import POOLINGS, Pooling

_MODULES = "modules.json"
_MAX_BYTES = 1 << 20
_STATED = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean_tokens",
}
"""Flags in a pooling module's config.json, and the ways of pooling that they stand for."""

_POOLING_OF_GGUF: dict[int, Pooling] = {
    PoolingType.NONE: "last",
    PoolingType.MEAN: "mean",
    PoolingType.CLS: "cls",
    PoolingType.LAST: "last",
    PoolingType.RANK: "last",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceLayout:
    """How a checkpoint's embeddings are made."""

    pooling: Pooling = "mean"
    normalizes: bool = True
    max_tokens: int | None = None
    """The most tokens of a text; None is as many as the transformer takes."""


def has_sentence_layout(folder: Path) -> bool:
    """Whether sentence-transformers wrote the folder."""
    return (folder / _MODULES).is_file()


def read_sentence_layout(folder: Path, default: Pooling = "mean") -> SentenceLayout:
    """Read a folder's layout.

    Args:
        default: the pooling if the folder states none.

    Raises:
        CorruptFile: a file is damaged.
        UnsupportedArchitecture: a step is unknown; the message names it.
        ModelLoadError: a key has an impossible value; the message names it.
    """
    limits = MetadataKeys(
        read_optional_json(folder / "sentence_bert_config.json"), "sentence_bert_config.json"
    )
    max_tokens = limits.integer("max_seq_length", None)
    if not has_sentence_layout(folder):
        return SentenceLayout(pooling=default, max_tokens=max_tokens)
    pooling, normalizes = default, False
    for place, kind in _steps(folder):
        match kind:
            case "Transformer":
                continue
            case "Pooling":
                pooling = _pooling(read_optional_json(folder / place / "config.json"))
            case "Normalize":
                normalizes = True
            case _:
                raise UnsupportedArchitecture(
                    f"{_MODULES} has a step {kind!r}; only Transformer, Pooling and Normalize are "
                    f"supported"
                )
    return SentenceLayout(pooling=pooling, normalizes=normalizes, max_tokens=max_tokens)


def read_gguf_layout(path: Path) -> SentenceLayout:
    """Read the layout of a decoder's GGUF file. One that states no pooling takes the last token.

    Raises:
        CorruptFile: the file is damaged.
        UnsupportedArchitecture: its pooling is unknown.
    """
    metadata = read_gguf_header(path, keeps_arrays=False).metadata
    key = f"{metadata.get('general.architecture')}.pooling_type"
    stated = metadata.get(key, PoolingType.NONE)
    way = _POOLING_OF_GGUF.get(stated) if isinstance(stated, int) else None
    if way is None:
        raise UnsupportedArchitecture(
            f"{path.name}: {key} is {str(stated)[:80]}; it must be one of "
            f"{', '.join(f'{number} ({one})' for number, one in _POOLING_OF_GGUF.items())}"
        )
    return SentenceLayout(pooling=way)


def _steps(folder: Path) -> Sequence[tuple[str, str]]:
    """The (folder, last part of the class's name) of each step."""
    steps = []
    for step in parse_json_list(read_bounded(folder / _MODULES, _MAX_BYTES), _MODULES):
        place = step.get("path", "") if isinstance(step, dict) else None
        kind = step.get("type") if isinstance(step, dict) else None
        if not isinstance(place, str) or not isinstance(kind, str) or not _is_inside(place):
            raise CorruptFile(f"{_MODULES} has a step without a folder or a type; fetch it again")
        steps.append((place, kind.rpartition(".")[2]))
    return steps


def _is_inside(place: str) -> bool:
    """Whether a path stays within the folder."""
    return not Path(place).is_absolute() and ".." not in Path(place).parts


def _pooling(config: dict[str, Any]) -> Pooling:
    """The single pooling that a module states, by flags or by name."""
    named = config.get("pooling_mode")
    stated = [way for key, way in _STATED.items() if config.get(key) is True]
    names = stated if named is None else named if isinstance(named, list) else [named]
    names = ["last" if name == "lasttoken" else name for name in names]
    if len(names) != 1 or names[0] not in POOLINGS:
        raise UnsupportedArchitecture(
            f"pooling by {' and '.join(map(str, names)) or 'nothing'} is not supported; it must be "
            f"one of {', '.join(POOLINGS)}"
        )
    way: Pooling = names[0]
    return way
