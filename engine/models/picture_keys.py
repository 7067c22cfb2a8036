"""What a checkpoint's files say about pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engine.contract.picture_facts import Resampling
from engine.errors import ModelLoadError
from engine.models.config import MAX_LAYERS
from engine.models.layers.activation import ACTIVATIONS
from engine.models.metadata_keys import MetadataKeys
from engine.models.vision_config import Channels, VisionConfig

_FILTERS: tuple[Resampling, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The filters by their numbers in Pillow."""
_CLIP_COLOURS: Mapping[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""The colours that CLIP was trained with, where a processor's file lacks them."""
_MAX_SIDE = 4096
"""The most pixels of a side of a crop, or of the picture that is cut into crops."""
_DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_hidden_layers": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureKeys:
    """The keys of a checkpoint's files from which a family reads how its model sees pictures."""

    config: MetadataKeys
    """config.json"""
    processor: MetadataKeys
    """processor_config.json"""
    images: MetadataKeys
    """The part of processor_config.json about images, or preprocessor_config.json."""
    tokenizer: MetadataKeys
    """tokenizer_config.json"""
    form: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the family's `VisionConfig` that follow from how the file stores tensors."""

    def check_processor(self, *names: str, normalises: bool = True) -> None:
        """Check that pictures are prepared in one of these ways.

        Args:
            names: prefixes of class names.
            normalises: whether colours are shifted and scaled by the file's numbers.

        Raises:
            ModelLoadError: they are prepared in another way.
        """
        stated = self.images.text("image_processor_type", names[0])
        if not stated.startswith(names):
            raise self.images.nonsense("image_processor_type", " or ".join(names))
        needed = {"do_resize": True, "do_rescale": True, "do_normalize": normalises}
        for name, value in needed.items():
            if self.images.flag(name, value) != value:
                raise self.images.nonsense(name, str(value).lower())

    def token(self, name: str, default: str) -> str:
        """The text of a special token that the tokenizer's configuration names."""
        more = self.tokenizer.values.get("extra_special_tokens")
        stated = self.tokenizer.values.get(name)
        if stated is None and isinstance(more, Mapping):
            stated = more.get(name)
        content = stated.get("content") if isinstance(stated, Mapping) else stated
        return content if isinstance(content, str) else default

    def with_clip_colours(self) -> "PictureKeys":
        """The same with CLIP's colours where the processor's file has none."""
        images = MetadataKeys({**_CLIP_COLOURS, **self.images.values}, self.images.source)
        return replace(self, images=images)

    def placeholder_id(self, key: str, default: int, vocab_size: int) -> int:
        """The id of the token that stands for a row of a picture. Its key is `image_token_id` where
        the file has that one."""
        key = "image_token_id" if self.config.values.get("image_token_id") is not None else key
        found: int = self.config.integer(key, default, low=0)
        if found >= vocab_size:
            raise self.config.nonsense(key, f"an integer below the vocabulary's size, {vocab_size}")
        return found

    def edge(self, key: str, default: int, most: int = _MAX_SIDE) -> int:
        """The `longest_edge` of a size."""
        size = self.images.inner(key, {"longest_edge": default})
        longest: int = size.integer("longest_edge", high=min(most, _MAX_SIDE))
        return longest

    def resampling(self, default: Resampling) -> Resampling:
        """The filter by which pictures are resized."""
        usual, most = _FILTERS.index(default), len(_FILTERS) - 1
        number: int = self.images.integer("resample", usual, low=0, high=most)
        return _FILTERS[number]

    def vision(self, missing: Mapping[str, Any], *, side: int, joined: int) -> VisionConfig:
        """The tower's configuration.

        Args:
            missing: the values of missing keys.
            side, joined: see `VisionConfig`.

        Raises:
            ModelLoadError: a key is missing or has an impossible value, or sizes contradict each
                other; the message names the key.
        """
        keys = self.config.inner("vision_config", _DEFAULTS | dict(missing))
        fields = self.tower_fields(keys, most_patch=min(side, _MAX_SIDE))
        patch = fields["patch_size"]
        if side // patch % joined:
            raise ModelLoadError(
                f"{keys.source}: {side // patch} patches per side cannot be divided into squares "
                f"of {joined} x {joined}"
            )
        return VisionConfig(
            image_size=keys.integer("image_size", low=patch, high=_MAX_SIDE),
            side=side,
            joined=joined,
            **fields,
        )

    def tower_fields(self, keys: MetadataKeys, most_patch: int = _MAX_SIDE) -> dict[str, Any]:
        """The fields of `VisionConfig` that all towers have.

        Args:
            keys: those of the tower.
            most_patch: the largest possible `patch_size`.

        Raises:
            ModelLoadError: a key is missing or has an impossible value.
        """
        hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        if hidden % heads:
            raise keys.nonsense("hidden_size", f"a multiple of num_attention_heads, {heads}")
        if keys.text("hidden_act") not in ACTIVATIONS:
            raise keys.nonsense("hidden_act", " or ".join(ACTIVATIONS))
        scale, shift = self._inputs()
        return {
            "hidden_size": hidden,
            "intermediate_size": keys.integer("intermediate_size"),
            "num_hidden_layers": keys.integer("num_hidden_layers", high=MAX_LAYERS),
            "num_attention_heads": heads,
            "patch_size": keys.integer("patch_size", high=most_patch),
            "hidden_act": keys.text("hidden_act"),
            "layer_norm_eps": keys.number("layer_norm_eps"),
            "scale": scale,
            "shift": shift,
        }

    def _inputs(self) -> tuple[Channels, Channels]:
        """`VisionConfig.scale` and `VisionConfig.shift`."""
        factor = self.images.number("rescale_factor", 1 / 255)
        means, deviations = self._channels("image_mean"), self._channels("image_std")
        pairs = list(zip(means, deviations, strict=True))
        red, green, blue = (factor / deviation for _, deviation in pairs)
        shifts = (-mean / deviation for mean, deviation in pairs)
        return (red, green, blue), tuple(shifts)  # type: ignore[return-value]

    def _channels(self, key: str) -> tuple[float, ...]:
        if self.images.values.get(key) is None:
            return 0.5, 0.5, 0.5
        numbers = self.images.numbers(key)
        if len(numbers) != 3:
            raise self.images.nonsense(key, "a list of three positive numbers")
        return numbers
