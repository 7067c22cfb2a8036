"""A decoder family's configuration, read from config.json or from GGUF metadata."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from engine.contract.kv_layout import KvShape, LayerGroup, LayerKind, group_layers
from engine.contract.kv_numbers import KvNumbers
from engine.contract.picture_facts import PictureFacts
from engine.models.vision_config import VisionConfig
from engine.models.wrapped_names import unwrapped

MAX_LAYERS = 1024
"""The most layers of a model. Published models have up to 130; each layer takes milliseconds to
build."""
_BARE_NAMES = ("embed_tokens.", "layers.", "norm.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer's shape. Fields are named as in Hugging Face's config.json.

    A family that needs more fields derives a class of its own, since only that family reads them.
    """

    borrows_rows: ClassVar[bool] = True
    """Whether the embedding looks up in a tied output layer that can lend its rows."""
    architecture: str
    """An entry of `architectures`, e.g. `LlamaForCausalLM`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """Hugging Face's dictionary (`rope_type`: linear, llama3, yarn ...); None is plain RoPE."""
    rotary_dim: int | None = None
    """Elements of a head that are rotated, the first ones; None for all."""
    rope_axes: tuple[int, ...] = ()
    """For each rotary frequency, the axis of positions in pictures that it turns by: 0 for time, 1
    for height, 2 for width. Empty if positions have no axes."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    windows: tuple[int | None, ...] = ()
    """The number of positions that each layer looks back at, the present one included; None for
    all. Empty: no layer has a limit."""
    kv_shapes: tuple[KvShape, ...] = ()
    """The shape of each layer's keys. Empty: `num_key_value_heads` of `head_dim` in all layers."""
    kv_sources: tuple[int, ...] = ()
    """The layer whose keys and values each layer reads: its own number or that of an earlier layer
    with the same window and shape. Empty: each layer has its own."""
    embedding: str = "model.embed_tokens"
    """The input embedding's name in the checkpoint."""
    tables: tuple[str, ...] = ()
    """The names of further embeddings in the checkpoint. Their rows are looked up, too."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    never_token_ids: tuple[int, ...] = ()
    """Tokens that the model must never draw, such as the ends of pictures."""
    pictures: PictureFacts | None = None
    """How it sees pictures; None if the checkpoint has no encoder for them."""
    vision: VisionConfig | None = None
    """The shape of the encoder for pictures; None exactly if `pictures` is None."""
    is_wrapped: bool = False
    """Whether the checkpoint is of a model for pictures and text, whose decoder is one part."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Sampler parameters that the model's makers recommend, unchecked, as in the checkpoint."""

    @property
    def experts(self) -> tuple[int, int] | None:
        """The number of experts of a layer and how many of them each token passes; None without
        experts."""
        return None

    @property
    def numbers_beside_layers(self) -> int:
        """The numbers that a row of a step has besides hidden states and those of one layer."""
        return 0

    def recurrent_bytes(self, dtype_bytes: int) -> int:
        """The bytes of one text's recurrent states; 0 without layers that have one."""
        return 0

    def within(self, max_model_len: int | None) -> Self:
        """Return the configuration for texts of at most that length; None for any length.

        LongRoPE has other divisors for models that serve texts longer than the first training
        length, and all cached keys must be computed with the same divisors.
        """
        scaling = self.rope_scaling or {}
        if max_model_len is None or scaling.get("rope_type") != "longrope":
            return self
        longest = min(max_model_len, self.max_position_embeddings)
        return replace(self, max_position_embeddings=longest)

    def tensor_name(self, name: str) -> str:
        """Return the model's name for a tensor of a safetensors file. Folders with only a decoder,
        such as those of sentence encoders, leave `model.` out."""
        if self.is_wrapped:
            return unwrapped(name)
        return f"model.{name}" if name.startswith(_BARE_NAMES) else name

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's tensors that a safetensors file has in one tensor, as views with their
        names."""
        yield name, tensor

    @property
    def state_size(self) -> int:
        """The numbers of the state of a picture's row."""
        return self.hidden_size * (1 if self.vision is None else self.vision.states_per_row)

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """`windows`, one per layer."""
        return self.windows or (None,) * self.num_hidden_layers

    @property
    def layer_kv_shapes(self) -> tuple[KvShape, ...]:
        """`kv_shapes`, one per layer."""
        same = KvShape(self.num_key_value_heads, self.head_dim)
        return self.kv_shapes or (same,) * self.num_hidden_layers

    @property
    def widest_head(self) -> int:
        """The largest size of a head."""
        return max(shape.head_dim for shape in self.layer_kv_shapes)

    @property
    def layer_kv_sources(self) -> tuple[int, ...]:
        """`kv_sources`, one per layer."""
        return self.kv_sources or tuple(range(self.num_hidden_layers))

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """The layers that keep keys and values."""
        return tuple(sorted(set(self.layer_kv_sources)))

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """The groups of layers that share KV blocks. If no layer attends, one group has blocks that
        hold nothing: they count tokens and name what states follow."""
        if not self.kv_layers:
            return (LayerGroup((), None, KvShape(self.num_key_value_heads, self.head_dim)),)
        windows, shapes = self.layer_windows, self.layer_kv_shapes
        return group_layers({i: LayerKind(windows[i], shapes[i]) for i in self.kv_layers})

    @property
    def group_windows(self) -> tuple[int | None, ...]:
        """The window of each group."""
        return tuple(group.window for group in self.layer_groups)

    def kv_bytes_per_token(self, kept: KvNumbers) -> int:
        """Bytes of one token's keys and values in the blocks of one of the `layer_groups`."""
        return max(kept.bytes_per_token(group) for group in self.layer_groups)
