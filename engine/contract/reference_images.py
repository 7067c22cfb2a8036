"""How many reference images an edit may combine, and the sizes at which a model sees them."""

import math
from dataclasses import dataclass

from engine.errors import InvalidParameter


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFacts:
    """The facts about a model that sees the input images of an EDIT beside the picture that it
    draws, each at a size of its own."""

    max_images: int
    """The most images of an edit; if it is 1, several images are edited one by one."""
    size_multiple: int
    """The number that divides width and height of a reference image."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The widths and heights that the model was trained on; empty: any up to `max_pixels`."""
    keeps_area: bool = False
    """Whether every image is scaled, up or down, to about `max_pixels`."""
    max_pixels: int = 1 << 20
    min_side: int = 1
    prompt_pixels: int = 0
    """The pixels, about, at which the text encoder sees each image; 0: it sees none."""
    max_ratio: int = 1 << 20
    """The largest ratio of the longer side to the shorter one."""
    sees_inpainted: bool = False
    """Whether INPAINT also shows the input image as a reference."""

    @property
    def combines(self) -> bool:
        """Whether an edit may use several images."""
        return self.max_images > 1

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """The size to which an image is scaled: the size of the nearest shape if there are `sizes`,
        one of `max_pixels` if the model keeps the area, otherwise its own, reduced to `max_pixels`.

        Raises:
            InvalidParameter: the image is too small or too long.
        """
        if self.sizes:
            ratio = width / height
            return min(self.sizes, key=lambda size: (abs(ratio - size[0] / size[1]), size))
        longer, shorter = max(width, height), min(width, height)
        if shorter < self.min_side or longer > self.max_ratio * shorter:
            raise InvalidParameter(
                f"an image has {width}x{height} pixels; this model needs sides of at least "
                f"{self.min_side} pixels, the longer at most {self.max_ratio} times the shorter; "
                f"enlarge the image or cut it",
                param="image",
            )
        if self.keeps_area:
            return self.size_near(self.max_pixels, width, height)
        scale = min(1.0, math.sqrt(self.max_pixels / (width * height)))
        return int(width * scale), int(height * scale)

    def size_near(self, num_pixels: int, width: int, height: int) -> tuple[int, int]:
        """The size of about `num_pixels` with this shape, in multiples of `size_multiple`."""
        across = math.sqrt(num_pixels * width / height)
        multiple = self.size_multiple
        sides = (round(side / multiple) * multiple for side in (across, across * height / width))
        scaled_width, scaled_height = (max(side, multiple) for side in sides)
        return scaled_width, scaled_height

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """The size at which the model sees an image: the middle of the scaled image.

        Raises:
            InvalidParameter: the image is too small or too long.
        """
        multiple = self.size_multiple
        scaled = self.scaled_size(width, height)
        return scaled[0] // multiple * multiple, scaled[1] // multiple * multiple
