"""Default sampling parameters: those that the model's makers recommend, or the operator's own.

Imports neither torch nor wire libraries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.contract.sampling_values import checked
from engine.errors import InvalidParameter, ModelLoadError, ModelNotFound
from engine.files.checkpoint_files import read_json

FILE_NAME = "generation_config.json"


_RECOMMENDED = [one.name for one in SAMPLER_PARAMETERS.values() if one.in_generation_config]


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


def _read(path: Path) -> dict[str, Any]:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise ModelNotFound(
            f"generation_config must be auto, none, a {FILE_NAME} file or a folder with one; there "
            f"is no such file or folder"
        )
    return read_json(file)
