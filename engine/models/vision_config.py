"""The shape of the encoder by which a text model sees pictures."""

from dataclasses import dataclass

from engine.contract.prompt_states import StatePart
from engine.models.picture_encoder import PictureEncoder

ROWS_OF_SLICE = 256
"""The patches that one slice of work on a CPU computes: about 100 ms of two cores for the largest
published towers."""

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
    image_size: int = 0
    """The width and height of the pictures that the tower was trained with; 0 if it has no learned
    positions."""
    patch_size: int
    hidden_act: str
    layer_norm_eps: float
    side: int = 0
    """The width and height of crops; 0 for pictures of any size."""
    joined: int
    """The width and height, in patches, of the square that becomes one prompt row."""
    scale: Channels
    """Inputs are levels from 0 to 255 times this, plus `shift`."""
    shift: Channels
    has_class_state: bool = False
    """Whether the tower adds a state of its own before those of the patches, as CLIP does."""
    has_first_norm: bool = False
    """Whether the states of patches are normalised before the first layer."""
    has_last_norm: bool = True
    """Whether the states of the last layer are normalised."""
    has_rms_norms: bool = False
    norms_queries: bool = False
    """Whether queries and keys are normalised."""
    scales_parts: bool = False
    """Whether the outputs of attention and MLPs are multiplied by learned numbers."""
    attention_bias: bool = True

    @property
    def grid(self) -> int:
        """The number of patches in a row or column of a crop."""
        return self.side // self.patch_size

    @property
    def trained_grid(self) -> int:
        """The number of patches in a row or column of the table of positions."""
        return self.image_size // self.patch_size

    @property
    def states_per_row(self) -> int:
        """How many states of the decoder's size a prompt row has."""
        return 1

    def tensor_name(self, name: str) -> str:
        """Return the model's name for a tensor that an mmproj file names by a layer's number."""
        return name

    def num_slices(self, part: StatePart) -> int:
        """The number of slices in which a part of a prompt is encoded on a CPU: each layer's
        projections and its other work, for some patches at a time, and the end."""
        num_tiles, num_patches = 1, part.num_states * self.joined**2
        if self.side:
            height, width = part.size
            num_tiles = height * width // self.side**2
            num_patches = self.grid**2 + self.has_class_state
        return num_tiles * 2 * self.num_hidden_layers * -(-num_patches // ROWS_OF_SLICE) + 1

    def reads(self, name: str) -> bool:
        """Whether the encoder reads a tensor, by its name in the model."""
        return True

    def create_encoder(self) -> PictureEncoder | None:
        """Build the encoder, without weights; None if the decoder's family builds it."""
        return None

    @property
    def rows_per_crop(self) -> int:
        """The number of prompt rows of a crop."""
        return (self.grid // self.joined) ** 2
