"""Default sampling parameters: those that the model's makers recommend, or the operator's own.

Imports neither torch nor wire libraries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint_files import read_json
from engine.errors import InvalidParameter, ModelLoadError, ModelNotFound
from engine.sampling_params import SAMPLER_PARAMETERS, Patterns, SamplerParameter

FILE_NAME = "generation_config.json"
_RECOMMENDED = [one.name for one in SAMPLER_PARAMETERS.values() if one.in_generation_config]
_NUMBERS = {name: one for name, one in SAMPLER_PARAMETERS.items() if one.kind != Patterns}


def default_sampling(
    of_model: Mapping[str, Any], source: str, override: Mapping[str, Any] | None
) -> dict[str, float]:
    """The values of sampler parameters by their names.

    Args:
        of_model: the checkpoint's recommendation, as written there.
        source: the setting `generation_config`.
        override: the setting `override_generation_config`.

    Raises:
        ModelNotFound: the named generation_config.json does not exist.
        CorruptFile: it is not JSON.
        ModelLoadError: one of its values, or of the checkpoint's, is out of bounds.
    """
    given = of_model
    if source == "none":
        given = {}
    elif source != "auto":
        given = recommended(_read(Path(source).expanduser()))
    try:
        return {**checked(given), **checked(override or {})}
    except InvalidParameter as error:
        raise ModelLoadError(
            f"{FILE_NAME}: {error.message}; correct it, or leave it out with "
            f"--generation-config none"
        ) from None


def recommended(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler parameters among the many values of a generation_config.json."""
    return {
        name: generation_config[name]
        for name in _RECOMMENDED
        if generation_config.get(name) is not None
    }


def checked(values: Mapping[str, Any]) -> dict[str, float]:
    """Check the names and values of sampler parameters.

    Raises:
        InvalidParameter: there is no such parameter, or its value is out of bounds.
    """
    for name in values:
        if name not in _NUMBERS:
            raise InvalidParameter(
                f"there is no sampler parameter {str(name)[:80]!r}; use some of "
                f"{', '.join(_NUMBERS)}"
            )
    return {name: _checked(_NUMBERS[name], value) for name, value in values.items()}


def _checked(one: SamplerParameter, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_within(one, value):
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        kind = "a whole number, " if one.kind is int else ""
        raise InvalidParameter(f"{one.name} is {shown}; it must be {kind}{one.bounds}")
    number: float = one.kind(value)
    return number


def _is_within(one: SamplerParameter, value: float) -> bool:
    """Whether a value is within its bounds; works for integers of any length and for NaN."""
    if one.kind is int and value % 1 != 0:
        return False
    if one.choices:
        return value in one.choices
    low = one.ge is None or value >= one.ge
    above = one.gt is None or value > one.gt
    return low and above and (one.le is None or value <= one.le)


def _read(path: Path) -> dict[str, Any]:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFound(
            f"generation_config must be auto, none, a {FILE_NAME} file or a folder with one; there "
            f"is no such file or folder"
        )
    return read_json(file)
