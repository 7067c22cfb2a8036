"""How tokens are chosen where a request says nothing: what the model's makers recommend, or what
the operator says instead.

Free of torch and of wire libraries.
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
    """Values of sampler parameters by their names.

    Args:
        of_model: what the checkpoint recommends, as it is written there.
        source: `generation_config` of the configuration.
        override: `override_generation_config`.

    Raises:
        ModelNotFound: the named generation_config.json is not there.
        CorruptFile: it is not JSON.
        ModelLoadError: a value in it, or in the checkpoint, is out of its bounds.
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
    """What a generation_config.json says of sampling, among much else."""
    return {
        name: generation_config[name]
        for name in _RECOMMENDED
        if generation_config.get(name) is not None
    }


def checked(values: Mapping[str, Any]) -> dict[str, float]:
    """
    Raises:
        InvalidParameter: there is no such sampler parameter, or its value is out of its bounds.
    """
    for name in values:
        if name not in _NUMBERS:
            raise InvalidParameter(
                f"there is no sampler parameter {str(name)[:80]!r}; there are {', '.join(_NUMBERS)}"
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
    """Also of an integer of any number of digits, and of no number at all (NaN)."""
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
        raise ModelNotFound(f"generation_config names no folder with {FILE_NAME}, nor such a file")
    return read_json(file)
