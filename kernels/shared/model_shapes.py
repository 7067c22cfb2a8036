"""Sizes of real models, for benchmarks and for compiling ahead of time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder's sizes, with the field names of Hugging Face's config.json."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    qk_norm: bool = False

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the (output, input) features of a layer's matrices, packed as the engine packs
        them."""
        heads = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        return {
            "qkv": (heads + 2 * kv, self.hidden_size),
            "o": (self.hidden_size, heads),
            "gate_up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }


LLAMA3_8B = ModelShape(
    name="llama3_8b",
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
)
LLAMA3_1B = ModelShape(
    name="llama3.2_1b",
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128256,
)
QWEN3_0_6B = ModelShape(
    name="qwen3_0.6b",
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    qk_norm=True,
)
SMOLLM2_135M = ModelShape(
    name="smollm2_135m",
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
)
