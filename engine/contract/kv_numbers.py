"""The size of a key or a value in the KV cache."""

from dataclasses import dataclass

from engine.contract.kv_layout import KvShape, LayerGroup

SCALE_BYTES = 4
"""The bytes of a scale, which is an fp32 number."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
PACKED = ("int8", "fp8")
"""The types with a scale for each token and key/value head: the largest magnitude of a head's key
or value becomes 127 or 448. Outlier channels thus share a scale only with their own head, and
writing a token changes no other token's numbers."""


@dataclass(frozen=True, slots=True)
class KvNumbers:
    """How the cache stores numbers: `ResolvedConfig.kv_cache_dtype`."""

    dtype: str

    @property
    def is_packed(self) -> bool:
        """Whether there are scales."""
        return self.dtype in PACKED

    def head_bytes(self, head_dim: int) -> int:
        """The bytes of one token's key or value in one head."""
        return head_dim * _ITEM_BYTES[self.dtype] + (SCALE_BYTES if self.is_packed else 0)

    def bytes_per_token(self, group: LayerGroup) -> int:
        """The bytes of one token's keys and values in all layers of a group."""
        return len(group.layers) * self.shape_bytes(group.shape)

    def shape_bytes(self, shape: KvShape) -> int:
        """The bytes of one token's key and value in one layer."""
        return shape.parts * shape.num_heads * self.head_bytes(shape.head_dim)
