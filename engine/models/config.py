"""What a decoder family must know to build itself, read from config.json or from GGUF metadata."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from engine.kv_layout import LayerGroup, group_layers
from engine.kv_numbers import KvNumbers

MAX_LAYERS = 1024
"""Of a model that is built. Published ones have up to 130; each takes milliseconds to build."""
_BARE_NAMES = ("embed_tokens.", "layers.", "norm.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer's shape. Field names are those of Hugging Face's config.json.

    A family that needs more derives its own from it: nobody else reads those fields.
    """

    borrows_rows: ClassVar[bool] = True
    """Whether the embedding looks up in a tied output layer that can lend its rows."""
    architecture: str
    """As in `architectures[0]`, e.g. `LlamaForCausalLM`."""
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
    """Elements of a head that turn, the first ones; None: all."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    windows: tuple[int | None, ...] = ()
    """Per layer how many positions each looks back at, itself included; None is all. Empty: all
    layers look back at all."""
    embedding: str = "model.embed_tokens"
    """The checkpoint's name of the input embedding."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    """Sampler parameters that its makers recommend, as the checkpoint has them: unchecked."""

    @property
    def experts(self) -> tuple[int, int] | None:
        """How many a layer of experts has, and how many of them each token passes; None: there are
        no such layers."""
        return None

    def within(self, max_model_len: int | None) -> Self:
        """The same for texts of that length at most; None: of any that it can use.

        LongRoPE has other divisors for models that serve longer texts than they were first trained
        for, and all cached keys must have the same.
        """
        scaling = self.rope_scaling or {}
        if max_model_len is None or scaling.get("rope_type") != "longrope":
            return self
        longest = min(max_model_len, self.max_position_embeddings)
        return replace(self, max_position_embeddings=longest)

    def tensor_name(self, name: str) -> str:
        """What the model calls a tensor of a safetensors file. Folders of a decoder alone, as of
        sentence encoders, leave `model.` out."""
        return f"model.{name}" if name.startswith(_BARE_NAMES) else name

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """`windows`, one per layer."""
        return self.windows or (None,) * self.num_hidden_layers

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """How layers share KV blocks."""
        return group_layers(self.layer_windows)

    @property
    def group_windows(self) -> tuple[int | None, ...]:
        """How far each group looks back."""
        return tuple(group.window for group in self.layer_groups)

    def kv_bytes_per_token(self, kept: KvNumbers) -> int:
        """Keys and values of one token in one of the `layer_groups`, as blocks have room for."""
        num_layers = max(len(group.layers) for group in self.layer_groups)
        return 2 * num_layers * self.num_key_value_heads * kept.head_bytes(self.head_dim)
