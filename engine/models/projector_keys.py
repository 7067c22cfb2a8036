"""What an mmproj file says: the GGUF file with the encoder of a model's pictures."""

from collections.abc import Mapping
from typing import Any

from engine.models.gguf_keys import GgufKeys
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys
from engine.quantization.plan import PICTURE_ENCODER

LAYERS = "v.blk."
"""The beginning of names of tensors in the tower's layers."""
SIGLIP_TENSORS = {
    "v.patch_embd": f"{PICTURE_ENCODER}tower.embeddings.patch_embedding",
    "v.position_embd": f"{PICTURE_ENCODER}tower.embeddings.position_embedding",
    "v.post_ln": f"{PICTURE_ENCODER}tower.post_layernorm",
    LAYERS: f"{PICTURE_ENCODER}tower.encoder.layers",
    "v.ln1": "layer_norm1",
    "v.ln2": "layer_norm2",
    "v.attn_q": "self_attn.q_proj",
    "v.attn_k": "self_attn.k_proj",
    "v.attn_v": "self_attn.v_proj",
    "v.attn_out": "self_attn.out_proj",
    "v.ffn_up": "mlp.fc1",
    "v.ffn_down": "mlp.fc2",
}
"""The tensors of SigLIP's tower: GGUF's names, and the model's."""
_VISION = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "image_size": "image_size",
    "patch_size": "patch_size",
}
_IMAGES = {"image_mean": "image_mean", "image_std": "image_std"}


class ProjectorKeys(MetadataKeys):
    """The metadata of an mmproj file, and that of the text model that it belongs to.

    Args:
        values: metadata by key.
        source: the file's name.
        shapes: shapes of the file's tensors.
        text: the text model's keys.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        text: GgufKeys,
    ) -> None:
        super().__init__(values, source)
        self.shapes = shapes
        self.text_keys = text

    @property
    def projector(self) -> str:
        """The type of the encoder."""
        beside = self.text("clip.vision.projector_type", "none")
        return str(self.text("clip.projector_type", beside))

    def size(self, name: str, default: int | None = None) -> int:
        """Read one of the tower's numbers."""
        found: int = self.integer(f"clip.vision.{name}", *(() if default is None else (default,)))
        return found

    def vision(self, **values: Any) -> dict[str, Any]:
        """Return what config.json says of the tower, with further keys."""
        return self._renamed(_VISION) | values

    def first_token(self, *names: str) -> str:
        """Return the first of these texts that is a token; the last one if none is."""
        tokens = self._tokens()
        return next((name for name in names if name in tokens), names[-1])

    def picture_keys(
        self,
        config: Mapping[str, Any],
        *,
        placeholder: str,
        id_key: str,
        images: Mapping[str, Any],
        processor: Mapping[str, Any] | None = None,
        form: Mapping[str, Any] | None = None,
    ) -> PictureKeys:
        """Return the keys of a folder's files that say the same.

        Args:
            config: keys of config.json.
            placeholder: the text of the token that stands for a row of a picture.
            id_key: config.json's key of its id.
            images, processor: keys of the processor's files.
            form: see `PictureKeys`.
        """
        tokens = self._tokens()
        place = tokens.index(placeholder) if placeholder in tokens else None
        return PictureKeys(
            config=MetadataKeys({**config, id_key: place}, self.source),
            processor=MetadataKeys(processor or {}, self.source),
            images=MetadataKeys({**self._renamed(_IMAGES), **images}, self.source),
            tokenizer=MetadataKeys({"image_token": placeholder}, self.source),
            form=form or {},
        )

    def flags(self, key: str) -> list[bool]:
        """Read a list of flags; empty if it is missing."""
        found = self.values.get(key) or []
        if not isinstance(found, list) or not all(isinstance(one, bool) for one in found):
            raise self.nonsense(key, "a list of values true or false")
        return found

    def _tokens(self) -> list[str]:
        found = self.text_keys.values.get("tokenizer.ggml.tokens")
        return found if isinstance(found, list) else []

    def _renamed(self, names: Mapping[str, str]) -> dict[str, Any]:
        return {name: self.values.get(f"clip.vision.{own}") for name, own in names.items()}
