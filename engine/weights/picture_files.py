"""Reads the files of a model folder that say how the model sees pictures."""

from dataclasses import replace
from pathlib import Path

import structlog

from engine.errors import ModelLoadError
from engine.files.checkpoint_files import read_optional_json
from engine.models.config import ModelConfig
from engine.models.family import ReadPictures
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys

_PROCESSOR, _IMAGES = "processor_config.json", "preprocessor_config.json"
_TOKENIZER = "tokenizer_config.json"

log = structlog.get_logger(__name__)


def with_pictures(
    config: ModelConfig, read_pictures: ReadPictures, keys: MetadataKeys, folder: Path
) -> ModelConfig:
    """Return the configuration with what the folder says about pictures. A folder whose files
    cannot be used for pictures still has a text model; the log says why it takes none.

    Args:
        keys: the keys of config.json.
    """
    try:
        facts, vision = read_pictures(_picture_keys(keys, folder), config)
    except ModelLoadError as error:
        log.warning("the model will not accept images", reason=error.message)
        return config
    return replace(config, pictures=facts, vision=vision)


def _picture_keys(config: MetadataKeys, folder: Path) -> PictureKeys:
    processor = MetadataKeys(read_optional_json(folder / _PROCESSOR), _PROCESSOR)
    images = processor.inner("image_processor")  # as transformers 5 saves it
    if not images.values:
        images = MetadataKeys(read_optional_json(folder / _IMAGES), _IMAGES)
    if not images.values:
        raise ModelLoadError(
            f"neither {_PROCESSOR} nor {_IMAGES} says how pictures are prepared; fetch them too"
        )
    tokenizer = MetadataKeys(read_optional_json(folder / _TOKENIZER), _TOKENIZER)
    return PictureKeys(config=config, processor=processor, images=images, tokenizer=tokenizer)
