"""What a fresh server suggests to ask of a model that takes a picture."""

import base64
import shlex

from engine.image_types import Pixels
from server.http.served_kind import FirstQuestion
from server.images.files import encode_image


def pixel_question(path: str, model: str) -> FirstQuestion:
    """The smallest picture there is, sent to `path`: a line for the shell has no file to send."""
    red = Pixels(width=1, height=1, channels=3, data=b"\xff\0\0")
    pixel = base64.b64encode(encode_image(red, "png")).decode("ascii")
    read = "import json, sys; print(json.load(sys.stdin)['size'])"
    return FirstQuestion(
        path=path,
        fields={"model": model, "image": pixel},
        then=f"python3 -c {shlex.quote(read)}",
    )
