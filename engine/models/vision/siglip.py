"""The vision towers of SigLIP, CLIP and InternVL: patches of a crop in, a state of each patch out.

Pre-norm layers, learned positions, attention in both directions. Papers: Zhai et al. 2023,
arXiv:2303.15343; Radford et al. 2021, arXiv:2103.00020.
"""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import ACTIVATIONS
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import LayerNorm, LearnedVector, RmsNorm
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.models.picture_encoder import Encoding
from engine.models.vision_config import ROWS_OF_SLICE, VisionConfig
from engine.quantization.method import TensorSpec
from kernels import attention

PositionIds = Callable[[VisionConfig], Tensor]
"""A function that finds the row of the table of positions for each patch of a crop, [L] int64."""


def own_positions(config: VisionConfig) -> Tensor:
    """The rows of the table of positions for a crop of the trained size, [L]: all of them."""
    return torch.arange(config.grid**2 + config.has_class_state)


class TowerLinear(Linear):
    """A linear layer outside the decoder, which adapters do not change."""

    takes_adapters: ClassVar[bool] = False


class PatchEmbeddings(nn.Module, WeightOwner):
    """Projects patches and adds learned positions."""

    def __init__(self, config: VisionConfig, position_ids: PositionIds) -> None:
        super().__init__()
        self._config = config
        self._position_ids = position_ids
        self._loaded: dict[str, Tensor] = {}
        self._method: Any
        self._state: Any
        self._positions: Tensor
        self._class_state: Tensor | None
        self._scale: Tensor
        self._shift: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """Map a crop, [S, S, 3] uint8, to [L, C]; a state that belongs to no patch comes first."""
        grid, patch = self._config.grid, self._config.patch_size
        inputs = pixels[: grid * patch, : grid * patch].float() * self._scale + self._shift
        cut = inputs.to(self._positions.dtype).view(grid, patch, grid, patch, 3)
        patches = cut.permute(0, 2, 4, 1, 3).reshape(grid * grid, -1)
        found: Tensor = self._method.apply(self._state, patches)
        if self._class_state is not None:
            found = torch.cat((self._class_state, found))
        return found + self._positions

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        config = self._config
        size, patch = config.hidden_size, config.patch_size
        self._method = options.plain_method()
        self._scale, self._shift = (
            torch.tensor(numbers, device=options.device) for numbers in (config.scale, config.shift)
        )
        shapes = {
            "patch_embedding.weight": (size, 3, patch, patch),
            "position_embedding.weight": (config.trained_grid**2 + config.has_class_state, size),
            "class_embedding" if config.has_class_state else "patch_embedding.bias": (size,),
        }

        def take(kind: str, tensor: Tensor) -> None:
            self._loaded[kind] = tensor.to(options.device, options.dtype, copy=True)

        return {
            f"{path}.{kind}": WeightSlot(TensorSpec(shape=shape), partial(take, kind))
            for kind, shape in shapes.items()
        }

    def process_weights_after_loading(self) -> None:
        weight = self._loaded["patch_embedding.weight"].flatten(1)
        self._state = self._method.arrange(weight, self._loaded.get("patch_embedding.bias"))
        state = self._loaded.get("class_embedding")
        self._class_state = None if state is None else state[None]
        table = self._loaded["position_embedding.weight"]
        self._positions = table[self._position_ids(self._config).to(table.device)]
        self._loaded = {}


class SelfAttention(nn.Module):
    """Attention in which each patch of a crop sees all patches of that crop."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        shards = [Shard(name, hidden) for name in ("q_proj", "k_proj", "v_proj")]
        self.qkv_proj = TowerLinear(hidden, shards, bias=config.attention_bias)
        self.out_proj = TowerLinear(hidden, (Shard("out_proj", hidden),), bias=True)
        self.q_norm = _rms_norm(hidden, 1e-6) if config.norms_queries else None
        self.k_norm = _rms_norm(hidden, 1e-6) if config.norms_queries else None
        self._num_heads = config.num_attention_heads

    def project(self, x: Tensor) -> Tensor:
        """Make queries, keys and values of some patches: [R, C] → [R, 3C]."""
        projected = self.qkv_proj(x, NO_CONTEXT)
        if self.q_norm is None or self.k_norm is None:
            return projected
        query, key, value = (part.contiguous() for part in projected.chunk(3, -1))
        return torch.cat((self.q_norm(query), self.k_norm(key), value), -1)

    def attend(self, projected: Tensor, first: int, last: int) -> Tensor:
        """Compute the patches `first .. last`: [L, 3C] → [last - first, C]."""
        heads = projected.view(1, len(projected), 3, self._num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        found = attention(query[:, :, first:last], key, value)[0]
        return self.out_proj(found, NO_CONTEXT)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.fc1 = TowerLinear(hidden, (Shard("fc1", inner),), bias=True)
        self.fc2 = TowerLinear(inner, (Shard("fc2", hidden),), bias=True)
        self._act = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Map [L, C] to [L, C]."""
        return self.fc2(self._act(self.fc1(x, NO_CONTEXT)), NO_CONTEXT)

    __call__ = forward


class Layer(nn.Module):
    """Attention and an MLP, each behind a norm. Modules are named as in checkpoints."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        norm = _rms_norm if config.has_rms_norms else LayerNorm
        self.layer_norm1 = norm(size, eps)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = norm(size, eps)
        self.mlp = Mlp(config)
        self.lambda_1 = LearnedVector(size) if config.scales_parts else None
        self.lambda_2 = LearnedVector(size) if config.scales_parts else None

    def slices(self, x: Tensor, num_rows: int) -> Generator[None]:
        """Run the layer slice by slice, with `num_rows` patches in each.

        Args:
            x: [L, C]. Mutated.
        """
        attn, projected = self.self_attn, []
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            projected.append(attn.project(self.layer_norm1(rows)))
            yield
        whole = torch.cat(projected)
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            rows += _scaled(attn.attend(whole, first, first + len(rows)), self.lambda_1)
            rows += _scaled(self.mlp(self.layer_norm2(rows)), self.lambda_2)
            yield


def _scaled(x: Tensor, scale: LearnedVector | None) -> Tensor:
    return x if scale is None else x * scale.weight


def _rms_norm(size: int, eps: float) -> RmsNorm:
    norm = RmsNorm(size, eps)
    norm.takes_adapters = False
    return norm


class VisionTower(nn.Module):
    """The tower up to its last norm, or up to a layer before."""

    def __init__(
        self,
        config: VisionConfig,
        position_ids: PositionIds,
        embeddings: type[PatchEmbeddings] = PatchEmbeddings,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = embeddings(config, position_ids)
        # The checkpoints' name has this typing error.
        self.pre_layrnorm = LayerNorm(size, eps) if config.has_first_norm else None
        layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.post_layernorm = LayerNorm(size, eps) if config.has_last_norm else None

    def begin(self, pixels: Tensor) -> Encoding:
        """Map a crop, [S, S, 3] uint8, to [L, C], slice by slice. A GPU is so fast that each slice
        has all patches."""
        x = self.embeddings(pixels)
        if self.pre_layrnorm is not None:
            x = self.pre_layrnorm(x)
        num_rows = ROWS_OF_SLICE if x.device.type == "cpu" else len(x)
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            yield from layer.slices(x, num_rows)
        return x if self.post_layernorm is None else self.post_layernorm(x)


class TowerEncoder(nn.Module):
    """A `PictureEncoder`: a tower, and a projector that joins the states of neighbouring patches to
    prompt rows. Slices are the same in any batch, and so are their bits."""

    def __init__(self, tower: VisionTower, projector: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector

    def begin(self, pixels: Tensor, shape: tuple[int, int] | None = None) -> Encoding:
        """See `PictureEncoder.begin`."""
        return self.projector((yield from self.tower.begin(pixels)))


def squares(states: Tensor, joined: int) -> Tensor:
    """Gather the states of neighbouring patches: [L, C] → [L / J², J, J, C] with J = `joined`."""
    grid = round(len(states) ** 0.5)
    across = grid // joined
    cut = states.view(across, joined, across, joined, -1)
    return cut.transpose(1, 2).flatten(0, 1)
