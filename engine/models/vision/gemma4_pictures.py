"""Gemma 4's vision tower, which reads pictures of any size and averages squares of patches.

Source: transformers' `modeling_gemma4.py`.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.models.config import ModelConfig
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.linear import Shard
from engine.models.layers.norm import LearnedVector, RmsNorm
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_encoder import Encoding, PictureEncoder
from engine.models.picture_keys import PictureKeys
from engine.models.vision.grid_tower import Grid, GridVisionConfig, PatchProjection
from engine.models.vision.siglip import TowerLinear
from engine.models.vision_config import ROWS_OF_SLICE, VisionConfig
from engine.quantization.method import TensorSpec
from kernels import attention, gelu_mul

ARCHITECTURE = "Gemma4ForConditionalGeneration"
_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "patch_size": 16,
}
"""The values of missing keys."""
_PLACEHOLDER_ID = 258_880
_MOST_SQUARES = 1120
_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4VisionConfig(GridVisionConfig):
    """The shape of Gemma 4's tower."""

    row_size: int
    """The size of the decoder's hidden states."""
    head_dim: int
    num_positions: int
    """The number of learned positions of each axis."""
    has_bounds: bool
    """Whether the inputs and outputs of linear layers are kept within bounds."""
    is_standardised: bool
    """Whether averaged states are shifted and scaled."""

    def num_slices(self, part: StatePart) -> int:
        """See `VisionConfig.num_slices`."""
        return VisionConfig.num_slices(self, part)

    def reads(self, name: str) -> bool:
        """See `VisionConfig.reads`. Sound is not supported."""
        return "audio" not in name

    def create_encoder(self) -> PictureEncoder:
        """See `VisionConfig.create_encoder`."""
        return Gemma4Encoder(self)


class BoundedLinear(nn.Module, WeightOwner):
    """A linear layer whose inputs and outputs may be kept within bounds."""

    def __init__(self, config: Gemma4VisionConfig, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = TowerLinear(in_features, (Shard("linear", out_features),))
        self._has_bounds = config.has_bounds
        self._bounds: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map [L, in] to [L, out]."""
        if not self._has_bounds:
            return self.linear(x, NO_CONTEXT)
        low, high, low_output, high_output = (self._bounds[name] for name in _BOUNDS)
        return self.linear(x.clamp(low, high), NO_CONTEXT).clamp_(low_output, high_output)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        names = _BOUNDS if self._has_bounds else ()
        spec = TensorSpec(shape=())
        return {f"{path}.{name}": WeightSlot(spec, partial(self._take, name)) for name in names}

    def _take(self, name: str, tensor: Tensor) -> None:
        self._bounds[name] = float(tensor)


class InputProjection(PatchProjection):
    """Projects the colours of patches; the checkpoint's weights have the colours last."""

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        [(name, slot)] = super().create_weights(path, options).items()
        hidden, colours, patch, _ = slot.spec.shape

        def load(tensor: Tensor) -> None:
            slot.load(tensor.view(hidden, patch, patch, colours).permute(0, 3, 1, 2))

        return {name: WeightSlot(TensorSpec(shape=(hidden, colours * patch**2)), load)}


class PatchEmbedder(nn.Module, WeightOwner):
    """Projects patches and adds a learned position for each axis."""

    def __init__(self, config: Gemma4VisionConfig) -> None:
        super().__init__()
        self.input_proj = InputProjection(config)
        self._shape = (2, config.num_positions, config.hidden_size)
        self._table: Tensor

    def forward(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Map a picture, [H, W, 3] uint8, to [L, C]."""
        down, across = grid.positions
        return self.input_proj(pixels, grid) + (self._table[0, across] + self._table[1, down])

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._table = torch.empty(self._shape, dtype=options.dtype, device=options.device)
        slot = WeightSlot(TensorSpec(shape=self._shape), self._fill)
        return {f"{path}.position_embedding_table": slot}

    def _fill(self, tensor: Tensor) -> None:
        self._table.copy_(tensor)


class Attention(nn.Module):
    """Attention of normalised heads, half of each rotated by the width, the other by the height."""

    def __init__(self, config: Gemma4VisionConfig) -> None:
        super().__init__()
        hidden, dim, eps = config.hidden_size, config.head_dim, config.layer_norm_eps
        inner = config.num_attention_heads * dim
        self.q_proj, self.k_proj, self.v_proj = (
            BoundedLinear(config, hidden, inner) for _ in range(3)
        )
        self.o_proj = BoundedLinear(config, inner, hidden)
        self.q_norm, self.k_norm = _norm(dim, eps), _norm(dim, eps)
        self.v_norm = RmsNorm(dim, eps, learned=False)
        self._dim = dim

    def project(self, x: Tensor, cos: Tensor, sin: Tensor, heads: Tensor) -> None:
        """Make rotated queries and keys, and values, of some patches: [R, C] → [R, 3, H, D].

        Args:
            cos, sin: [R, 1, 2, D/4].
            heads: the result.
        """
        shape = (len(x), -1, self._dim)
        heads[:, 2] = self.v_norm(self.v_proj(x).view(shape))
        queries = self.q_norm(self.q_proj(x).view(shape)).float()
        # Attention divides scores by the root of the size, which Gemma 4 does not.
        for place, states in enumerate(
            (queries * self._dim**0.5, self.k_norm(self.k_proj(x).view(shape)).float())
        ):
            first, second = states.view(*states.shape[:2], 2, -1).chunk(2, -1)
            rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
            heads[:, place] = rotated.flatten(2)

    def attend(self, heads: Tensor, first: int, last: int) -> Tensor:
        """Compute the patches `first .. last`: [L, 3, H, D] → [last - first, C]."""
        query, key, value = heads.permute(1, 2, 0, 3)[:, None]
        return self.o_proj(attention(query[:, :, first:last], key, value)[0])


class Mlp(nn.Module):
    """A gated MLP."""

    def __init__(self, config: Gemma4VisionConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = BoundedLinear(config, hidden, inner)
        self.up_proj = BoundedLinear(config, hidden, inner)
        self.down_proj = BoundedLinear(config, inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map [L, C] to [L, C]."""
        return self.down_proj(gelu_mul(torch.cat((self.gate_proj(x), self.up_proj(x)), -1)))

    __call__ = forward


class Layer(nn.Module):
    """Attention and an MLP, each between two norms. Modules are named as in checkpoints."""

    def __init__(self, config: Gemma4VisionConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self._head_shape = (config.num_attention_heads, config.head_dim)
        self.input_layernorm = _norm(size, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = _norm(size, eps)
        self.pre_feedforward_layernorm = _norm(size, eps)
        self.mlp = Mlp(config)
        self.post_feedforward_layernorm = _norm(size, eps)

    def slices(self, x: Tensor, rotation: tuple[Tensor, Tensor], num_rows: int) -> Generator[None]:
        """Run the layer slice by slice, with `num_rows` patches in each.

        Args:
            x: [L, C]. Mutated.
        """
        cos, sin = rotation
        heads = x.new_empty(len(x), 3, *self._head_shape)
        for first in range(0, len(x), num_rows):
            part = slice(first, first + num_rows)
            self.self_attn.project(self.input_layernorm(x[part]), cos[part], sin[part], heads[part])
            yield
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            mixed = self.self_attn.attend(heads, first, first + len(rows))
            rows += self.post_attention_layernorm(mixed)
            found = self.mlp(self.pre_feedforward_layernorm(rows))
            rows += self.post_feedforward_layernorm(found)
            yield


class VisionTower(nn.Module):
    """The tower up to the averaged states."""

    def __init__(self, config: Gemma4VisionConfig) -> None:
        super().__init__()
        self._config = config
        self.patch_embedder = PatchEmbedder(config)
        layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.std_bias = LearnedVector(config.hidden_size) if config.is_standardised else None
        self.std_scale = LearnedVector(config.hidden_size) if config.is_standardised else None

    def begin(self, pixels: Tensor) -> Encoding:
        """Map a picture, [H, W, 3] uint8, to the states of its squares, line by line. A GPU is so
        fast that each slice has all patches."""
        config = self._config
        square = config.patch_size * config.joined
        lines, columns = (length // square for length in pixels.shape[:2])
        grid = Grid(lines, columns, config.joined, 0, pixels.device)
        x = self.patch_embedder(pixels, grid)
        rotation = _rotation(grid, config)
        num_rows = ROWS_OF_SLICE if x.device.type == "cpu" else len(x)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            yield from layer.slices(x, rotation, num_rows)
        means = x.float().view(-1, config.joined**2, x.shape[1]).mean(1).to(x.dtype)
        states = means.float() * config.hidden_size**0.5
        if self.std_bias is not None and self.std_scale is not None:
            states = (states - self.std_bias.weight.float()) * self.std_scale.weight.float()
        found: Tensor = states.to(x.dtype)
        return found


class Gemma4Encoder(nn.Module):
    """A `PictureEncoder` for pictures of any size."""

    def __init__(self, config: Gemma4VisionConfig) -> None:
        super().__init__()
        self.tower = VisionTower(config)
        self._norm = RmsNorm(config.hidden_size, config.layer_norm_eps, learned=False)
        projection = Shard("embedding_projection", config.row_size)
        self.embed_vision = nn.ModuleDict(
            {"embedding_projection": TowerLinear(config.hidden_size, (projection,))}
        )

    def begin(self, pixels: Tensor, shape: tuple[int, int] | None = None) -> Encoding:
        """See `PictureEncoder.begin`."""
        states = self._norm((yield from self.tower.begin(pixels)))
        found: Tensor = self.embed_vision["embedding_projection"](states, NO_CONTEXT)
        return found


def _norm(size: int, eps: float) -> RmsNorm:
    norm = RmsNorm(size, eps)
    norm.takes_adapters = False
    return norm


def _rotation(grid: Grid, config: Gemma4VisionConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for heads of D numbers, [L, 1, 2, D / 4] each: of the width, then of
    the height."""
    half = config.head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32) / half
    inv_freq = (1.0 / config.rope_base**exponents).to(grid.positions.device)
    angles = (grid.positions.flip(0).T[..., None].float() * inv_freq)[:, None]
    return angles.cos(), angles.sin()


def read_pictures(keys: PictureKeys, config: ModelConfig) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    images = keys.images
    keys.check_processor("Gemma4ImageProcessor", normalises=False)
    # Levels from 0 to 1 become -1 to 1 in the tower, whatever the file says of colours.
    plain = {**images.values, "image_mean": None, "image_std": None}
    keys = replace(keys, images=MetadataKeys(plain, images.source))
    vision = keys.config.inner("vision_config", _VISION)
    patch, joined = vision.integer("patch_size"), vision.integer("pooling_kernel_size", 3)
    for name, usual, needed in (("patch_size", 16, patch), ("pooling_kernel_size", 3, joined)):
        if images.integer(name, usual) != needed:
            raise images.nonsense(name, f"{needed}, as in {vision.source}")
    squares = images.integer("max_soft_tokens", 280, high=_MOST_SQUARES)
    positions = vision.integer("position_embedding_size", 10_240)
    if squares * joined > positions:
        raise images.nonsense("max_soft_tokens", f"at most {positions // joined}")
    if vision.text("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise vision.nonsense("hidden_activation", "gelu_pytorch_tanh")
    heads, dim = vision.integer("num_attention_heads"), vision.integer("head_dim", 64)
    if vision.integer("num_key_value_heads", heads) != heads:
        raise vision.nonsense("num_key_value_heads", f"{heads}, as many as num_attention_heads")
    if dim % 4:
        raise vision.nonsense("head_dim", "a multiple of 4")
    eps = vision.number("rms_norm_eps", 1e-6)
    named = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": eps}
    rope = vision.inner("rope_parameters")
    placeholder = keys.token("image_token", "<|image|>")
    sees = keys.config.inner("text_config").text("use_bidirectional_attention", None)
    facts = PictureFacts(
        side=patch * joined,
        rows_per_crop=1,
        marker=placeholder,
        placeholder=placeholder,
        placeholder_id=keys.placeholder_id("image_token_id", _PLACEHOLDER_ID, config.vocab_size),
        looks_both_ways=sees == "vision",
        resampling=keys.resampling("bicubic"),
        before=keys.token("boi_token", "<|image>"),
        after=keys.token("eoi_token", "<image|>"),
        most_squares=squares,
    )
    return facts, Gemma4VisionConfig(
        **keys.tower_fields(MetadataKeys({**vision.values, **named}, vision.source)),
        joined=joined,
        mlp=("gate_proj", "up_proj", "down_proj"),
        rope_base=rope.number("rope_theta", 100.0),
        row_size=config.hidden_size,
        head_dim=dim,
        num_positions=positions,
        has_bounds=vision.flag("use_clipped_linears", False),
        is_standardised=vision.flag("standardize", False),
    )


PICTURE_READERS = {ARCHITECTURE: read_pictures}
