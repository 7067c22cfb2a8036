"""The vision towers of Pixtral, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5, which read pictures of
any size.

Rotary positions have a height and a width. Papers: Wang et al. 2024, arXiv:2409.12191, section 2.1;
Bai et al. 2025, arXiv:2502.13923, section 2.1.1, for attention in windows; Meng et al. 2024,
arXiv:2406.04334, for states that are added to the decoder's first layers (deepstack).
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from engine.contract.prompt_states import StatePart
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import ACTIVATIONS, gelu
from engine.models.layers.linear import Shard
from engine.models.layers.norm import LayerNorm, RmsNorm
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.models.picture_encoder import Encoding
from engine.models.vision.siglip import TowerLinear
from engine.models.vision_config import ROWS_OF_SLICE, VisionConfig
from engine.quantization.method import TensorSpec
from kernels import attention, silu_mul


@dataclass(frozen=True, slots=True, kw_only=True)
class GridVisionConfig(VisionConfig):
    """The shape of a tower for pictures of any size."""

    frames: int | None = None
    """How many times each patch is repeated, if the tower was trained with films, too."""
    qkv: tuple[str, ...] = ("qkv",)
    """The checkpoint's names for the projections of queries, keys and values."""
    mlp: tuple[str, ...]
    """The checkpoint's names for the layers of an MLP, of which a gated one has three."""
    frame_weights: tuple[str, ...] = ("weight",)
    """The checkpoint's names for the weights of patches: one tensor, or one for each frame."""
    has_patch_bias: bool = False
    has_patch_norm: bool = False
    """Whether projected patches are normalised."""
    has_bias: bool = True
    """Whether the linear layers of blocks have biases."""
    rope_base: float = 10000.0
    axes_take_turns: bool = False
    """Whether every other rotary frequency belongs to the height. If not, both axes have the same
    frequencies."""
    window: int = 0
    """The width and height, in prompt rows, of windows in which patches see each other; 0 if all
    see all."""
    whole_layers: tuple[int, ...] = ()
    """The layers without windows."""
    deep_layers: tuple[int, ...] = ()
    """The layers whose states are added to the outputs of the decoder's first layers."""

    @property
    def states_per_row(self) -> int:
        return 1 + len(self.deep_layers)

    def tensor_name(self, name: str) -> str:
        """See `VisionConfig.tensor_name`: mergers stand in the order of their layers."""
        before, mergers, rest = name.partition(".deepstack_merger_list.")
        layer, _, part = rest.partition(".")
        if not mergers or int(layer) not in self.deep_layers:
            return name
        return f"{before}{mergers}{self.deep_layers.index(int(layer))}.{part}"

    def num_slices(self, part: StatePart) -> int:
        """See `VisionConfig.num_slices`; each merger's work is divided into slices, too."""
        num_patches = part.num_states * self.joined**2
        per_patch = 2 * self.num_hidden_layers + self.states_per_row
        return per_patch * -(-num_patches // ROWS_OF_SLICE) + 1


class Windows(NamedTuple):
    """Windows of one size, whose patches stand together."""

    first: int
    """The number of patches before them."""
    number: int
    num_patches: int
    """The number of patches of each."""


class Grid:
    """The patches of a picture, in the order in which the tower keeps them: those of a prompt row
    together, and the rows of a window together.

    Args:
        lines, columns: the height and width of the picture in prompt rows.
        joined: the height and width of a prompt row in patches.
        side: the height and width of a window in prompt rows; 0 for none.
    """

    def __init__(
        self, lines: int, columns: int, joined: int, side: int, device: torch.device
    ) -> None:
        places = torch.arange(lines * columns, device=device).view(lines, columns)
        self.windows: list[Windows] = []
        order, first = [], 0
        for part in _parts(places, side):
            height, width = (min(side or length, length) for length in part.shape)
            cut = part.reshape(part.shape[0] // height, height, part.shape[1] // width, width)
            order.append(cut.transpose(1, 2).flatten())
            num_patches = height * width * joined**2
            self.windows.append(Windows(first, part.numel() // (height * width), num_patches))
            first += part.numel() * joined**2
        self.order = torch.cat(order)
        """The number of each prompt row in the picture, line by line."""
        within = torch.arange(joined, device=device)
        down = (self.order // columns * joined)[:, None, None] + within[:, None]
        across = (self.order % columns * joined)[:, None, None] + within
        shape = (len(self.order), joined, joined)
        self.positions = torch.stack([one.expand(shape).flatten() for one in (down, across)])
        """The height and width of each patch, [2, L]."""
        self.size = lines * joined, columns * joined


def _parts(places: Tensor, side: int) -> list[Tensor]:
    """Cut a grid so that each part has windows of one size; the last ones may be smaller."""
    if not side:
        return [places]
    lines, columns = (length // side * side for length in places.shape)
    halves = places[:lines], places[lines:]
    parts = [part for half in halves for part in (half[:, :columns], half[:, columns:])]
    return [part for part in parts if part.numel()]


class PatchProjection(nn.Module, WeightOwner):
    """Projects the colours of patches."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        self._config = config
        self._loaded: dict[str, Tensor] = {}
        self._method: Any
        self._state: Any

    def forward(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Map a picture, [H, W, 3] uint8, to [L, C]."""
        config = self._config
        joined, patch, frames = config.joined, config.patch_size, config.frames
        lines, columns = (length // joined for length in grid.size)
        inputs = pixels.float() * self._scale + self._shift
        cut = inputs.to(self._dtype).view(lines, joined, patch, columns, joined, patch, 3)
        rows = cut.permute(0, 3, 1, 4, 6, 2, 5).reshape(lines * columns, joined**2, 3, 1, patch**2)
        patches = rows[grid.order].expand(-1, -1, -1, frames or 1, -1)
        found: Tensor = self._method.apply(
            self._state, patches.reshape(grid.positions.shape[1], -1)
        )
        return found

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        config = self._config
        self._method, self._dtype = options.plain_method(), options.dtype
        self._scale, self._shift = (
            torch.tensor(numbers, device=options.device) for numbers in (config.scale, config.shift)
        )
        patch = config.patch_size
        one_tensor = len(config.frame_weights) == 1 and config.frames is not None
        frames = (config.frames,) if one_tensor else ()
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            config.frame_weights, (config.hidden_size, 3, *frames, patch, patch)
        )
        if config.has_patch_bias:
            shapes["bias"] = (config.hidden_size,)

        def take(kind: str, tensor: Tensor) -> None:
            self._loaded[kind] = tensor.to(options.device, options.dtype, copy=True)

        return {
            f"{path}.{kind}": WeightSlot(TensorSpec(shape=shape), partial(take, kind))
            for kind, shape in shapes.items()
        }

    def process_weights_after_loading(self) -> None:
        weights = [self._loaded[name] for name in self._config.frame_weights]
        weight = weights[0] if len(weights) == 1 else torch.stack(weights, 2)
        self._state = self._method.arrange(weight.flatten(1), self._loaded.get("bias"))
        self._loaded = {}


class LearnedPositions(nn.Module, WeightOwner):
    """A square table of positions, which is stretched over pictures of any size."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        self._side = config.trained_grid
        self._shape = (self._side**2, config.hidden_size)

    def forward(self, grid: Grid) -> Tensor:
        """Return the positions of all patches, [L, C]: means of four neighbours in the table."""
        found: Tensor | float = 0.0
        axes = [
            self._neighbours(at, length)
            for at, length in zip(grid.positions, grid.size, strict=True)
        ]
        for line, of_line in axes[0]:
            for column, of_column in axes[1]:
                weight = (of_line * of_column)[:, None]
                found = found + self._table[line * self._side + column] * weight
        assert isinstance(found, Tensor)
        return found.to(self._table.dtype)

    __call__ = forward

    def _neighbours(self, at: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
        """Return the two nearest lines or columns of the table, and their weights."""
        place = at.float() * (self._side - 1) / max(length - 1, 1)
        before = place.floor()
        share = place - before
        first = before.long()
        return [(first, 1 - share), ((first + 1).clamp(max=self._side - 1), share)]

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._table = torch.empty(self._shape, dtype=options.dtype, device=options.device)
        return {f"{path}.weight": WeightSlot(TensorSpec(shape=self._shape), self._fill)}

    def _fill(self, tensor: Tensor) -> None:
        self._table.copy_(tensor)


class GridAttention(nn.Module):
    """Attention with rotary positions of two axes."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.has_bias
        shards = [Shard(name, 3 * hidden // len(config.qkv)) for name in config.qkv]
        self.qkv = TowerLinear(hidden, shards, bias=bias)
        self.proj = TowerLinear(hidden, (Shard("proj", hidden),), bias=bias)
        self.head_shape = config.num_attention_heads, hidden // config.num_attention_heads

    def project(self, x: Tensor, cos: Tensor, sin: Tensor, heads: Tensor) -> None:
        """Make rotated queries and keys, and values, of some patches: [R, C] → [R, 3, H, D].

        Args:
            cos, sin: [R, 1, 1, D/2].
            heads: the result.
        """
        heads.copy_(self.qkv(x, NO_CONTEXT).view(heads.shape))
        first, second = heads[:, :2].float().chunk(2, -1)
        heads[:, :2] = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def everywhere(self, heads: Tensor, first: int, last: int) -> Tensor:
        """Let the patches `first .. last` see all: [L, 3, H, D] → [last - first, C]."""
        query, key, value = heads.permute(1, 2, 0, 3)[:, None]
        return attention(query[:, :, first:last], key, value)[0]

    def in_windows(self, heads: Tensor, windows: list[Windows]) -> Tensor:
        """Let all patches see their windows: [L, 3, H, D] → [L, C]."""
        found = []
        for first, number, num_patches in windows:
            rows = heads[first : first + number * num_patches]
            cut = rows.view(number, num_patches, *rows.shape[1:])
            query, key, value = cut.permute(2, 0, 3, 1, 4)
            found.append(attention(query, key, value).flatten(0, 1))
        return torch.cat(found)


class TowerMlp(nn.Module):
    """Two linear layers with an activation between them, or a gated MLP."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        *names, last = config.mlp
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.has_bias
        self.first = TowerLinear(hidden, [Shard(name, inner) for name in names], bias=bias)
        self.last = TowerLinear(inner, (Shard(last, hidden),), bias=bias)
        self._act: Callable[[Tensor], Tensor] = ACTIVATIONS[config.hidden_act]
        if len(names) > 1:
            self._act = silu_mul if config.hidden_act == "silu" else partial(_gated, self._act)

    def forward(self, x: Tensor) -> Tensor:
        """Map [L, C] to [L, C]."""
        return self.last(self._act(self.first(x, NO_CONTEXT)), NO_CONTEXT)

    __call__ = forward


def _gated(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return act(gate.contiguous()) * up


class Block(nn.Module):
    """Attention and an MLP, each behind a norm. Modules are named as in checkpoints."""

    def __init__(self, config: GridVisionConfig) -> None:
        super().__init__()
        self.norm1 = _norm(config, config.hidden_size)
        self.attn = GridAttention(config)
        self.norm2 = _norm(config, config.hidden_size)
        self.mlp = TowerMlp(config)

    def slices(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        windows: list[Windows] | None,
        num_rows: int,
    ) -> Generator[None]:
        """Run the block slice by slice, with `num_rows` patches in each.

        Args:
            x: [L, C]. Mutated.
            windows: those in which patches see each other; None if all see all.
        """
        cos, sin = rotation
        heads = x.new_empty(len(x), 3, *self.attn.head_shape)
        for first in range(0, len(x), num_rows):
            part = slice(first, first + num_rows)
            self.attn.project(self.norm1(x[part]), cos[part], sin[part], heads[part])
            yield
        # Together the windows take little time.
        seen = None if windows is None else self.attn.in_windows(heads, windows)
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            last = first + len(rows)
            mixed = self.attn.everywhere(heads, first, last) if seen is None else seen[first:last]
            rows += self.attn.proj(mixed, NO_CONTEXT)
            rows += self.mlp(self.norm2(rows))
            yield


class GridProjector(Protocol):
    """Projects the states of the patches of each prompt row to the decoder's size."""

    def slices(self, x: Tensor, num_rows: int) -> Generator[None, None, Tensor]:
        """Map [L, C] to the states of prompt rows, with `num_rows` patches in each slice."""
        ...


class Merger(nn.Module):
    """Projects the states of the patches of each prompt row together.

    Args:
        norms_rows: whether the patches of a row are normalised together, rather than each alone.
    """

    def __init__(
        self, config: GridVisionConfig, hidden_size: int, *, norms_rows: bool = False
    ) -> None:
        super().__init__()
        self._size = config.hidden_size * config.joined**2
        self._norms_rows = norms_rows
        self.norm = _norm(config, self._size if norms_rows else config.hidden_size)
        self.linear_fc1 = TowerLinear(self._size, (Shard("linear_fc1", self._size),), bias=True)
        self.linear_fc2 = TowerLinear(self._size, (Shard("linear_fc2", hidden_size),), bias=True)

    def slices(self, x: Tensor, num_rows: int) -> Generator[None, None, Tensor]:
        """See `GridProjector.slices`."""
        found = []
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            if self._norms_rows:
                joined = self.norm(rows.reshape(-1, self._size))
            else:
                joined = self.norm(rows).view(-1, self._size)
            found.append(self.linear_fc2(gelu(self.linear_fc1(joined, NO_CONTEXT)), NO_CONTEXT))
            yield
        return torch.cat(found)


class GridEncoder(nn.Module):
    """A `PictureEncoder` for pictures of any size.

    Args:
        hidden_size: the decoder's.
        projector: by default a `Merger`.
    """

    def __init__(
        self, config: GridVisionConfig, hidden_size: int, projector: GridProjector | None = None
    ) -> None:
        super().__init__()
        self._config = config
        self.patch_embed = nn.ModuleDict({"proj": PatchProjection(config)})
        self.patch_norm = _norm(config, config.hidden_size) if config.has_patch_norm else None
        self.pos_embed = LearnedPositions(config) if config.image_size else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.projector = projector or Merger(config, hidden_size)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(config, hidden_size, norms_rows=True) for _ in config.deep_layers
        )

    def begin(self, pixels: Tensor, shape: tuple[int, int] | None = None) -> Encoding:
        """See `PictureEncoder.begin`. A GPU is so fast that each slice has all patches."""
        config = self._config
        square = config.patch_size * config.joined
        lines, columns = (length // square for length in pixels.shape[:2])
        grid = Grid(lines, columns, config.joined, config.window, pixels.device)
        x = self.patch_embed["proj"](pixels, grid)
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed(grid)
        rotation = _rotation(grid, config)
        num_rows = ROWS_OF_SLICE if x.device.type == "cpu" else len(x)
        deep = []
        for number, block in enumerate(self.blocks):
            sees_all = not config.window or number in config.whole_layers
            windows = None if sees_all else grid.windows
            yield from block.slices(x, rotation, windows, num_rows)  # type: ignore[operator]
            if number in config.deep_layers:
                merger = self.deepstack_merger_list[config.deep_layers.index(number)]
                deep.append((yield from merger.slices(x, num_rows)))  # type: ignore[operator]
        merged = yield from self.projector.slices(x, num_rows)
        return torch.cat((merged, *deep), -1)[grid.order.argsort()]


def _rotation(grid: Grid, config: GridVisionConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for heads of D numbers, [L, 1, 1, D / 2] each: half of the
    frequencies turn by the height, the others by the width."""
    half = config.hidden_size // config.num_attention_heads // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32) / half
    shifts = torch.tensor([0.0, config.axes_take_turns / half])[:, None]
    inv_freq = (1.0 / config.rope_base ** (exponents + shifts)).to(grid.positions.device)
    down, across = grid.positions[..., None].float() * inv_freq[:, None]
    angles = torch.cat((down, across), -1)[:, None, None]
    return angles.cos(), angles.sin()


def _norm(config: GridVisionConfig, size: int) -> RmsNorm | LayerNorm:
    if not config.has_rms_norms:
        return LayerNorm(size, config.layer_norm_eps)
    norm = RmsNorm(size, config.layer_norm_eps)
    norm.takes_adapters = False
    return norm
