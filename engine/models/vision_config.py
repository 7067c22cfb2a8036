"""The shape of the encoder by which a text model sees pictures."""

from dataclasses import dataclass

Channels = tuple[float, float, float]
"""A number for each colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A vision tower's shape, the form of its inputs, and how many patches become a prompt row.
    Most fields are named as in Hugging Face's config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    """The width and height of the pictures that the tower was trained with."""
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    side: int
    """The width and height of crops."""
    joined: int
    """The width and height, in patches, of the square that becomes one prompt row."""
    scale: Channels
    """Inputs are levels from 0 to 255 times this, plus `shift`."""
    shift: Channels

    @property
    def grid(self) -> int:
        """The number of patches in a row or column of a crop."""
        return self.side // self.patch_size

    @property
    def trained_grid(self) -> int:
        """The number of patches in a row or column of the table of positions."""
        return self.image_size // self.patch_size

    @property
    def rows_per_crop(self) -> int:
        """The number of prompt rows of a crop."""
        return (self.grid // self.joined) ** 2
