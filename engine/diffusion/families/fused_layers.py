"""Replaces norms, activations, attention and 3x3 convolutions of diffusers' UNets and VAEs by
operations of `kernels`.

Weights and their names stay. Layers of other kinds stay as they are, so a model with them works,
but gains no speed from this.
"""

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from engine.diffusion.families.convolutions import arrange_convolutions
from engine.diffusion.families.products import separate_rows
from engine.diffusion.families.timesteps import RowSiLU, RowTimesteps, silu
from kernels import attention, geglu, group_norm_silu


def fuse_layers(model: nn.Module) -> None:
    """Replace layers in place. The model must be on its device and in its dtype already."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is ResnetBlock2D and _is_plain(child):
                setattr(module, name, FusedResnetBlock(child))
            elif type(child) is GEGLU:
                setattr(module, name, FusedGeglu(child))
        if isinstance(module, Transformer2DModel) and type(module.norm) is nn.GroupNorm:
            module.norm = FusedGroupNorm(module.norm, silu=False)
        last_norm = getattr(module, "conv_norm_out", None)
        if type(last_norm) is nn.GroupNorm and type(module.conv_act) is nn.SiLU:
            module.conv_norm_out = FusedGroupNorm(last_norm, silu=True)
            module.conv_act = nn.Identity()
        if isinstance(module, Attention) and _attends_to_itself(module):
            module.set_processor(FusedSelfAttention())
        for name, child in list(module.named_children()):
            if type(child) is Timesteps:
                setattr(module, name, RowTimesteps(child))
            elif type(child) is nn.SiLU:
                setattr(module, name, RowSiLU())
    arrange_convolutions(model)
    separate_rows(model)


class FusedGroupNorm(nn.GroupNorm):
    """A copy of `norm` with its weights, optionally followed by SiLU."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.silu = silu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `[R, C, h, w]`; the shape stays."""
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, self.silu)


class FusedResnetBlock(nn.Module):
    """The computation of a plain `ResnetBlock2D` (`_is_plain`), with its parts."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1 = FusedGroupNorm(block.norm1, silu=True)
        self.conv1 = block.conv1
        self.time_emb_proj = block.time_emb_proj
        self.norm2 = FusedGroupNorm(block.norm2, silu=True)
        self.conv2 = block.conv2
        self.conv_shortcut = block.conv_shortcut

    def forward(self, states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Turn `[R, C, h, w]` and the embedded timesteps `[R, E]`, if any, into `[R, C', h, w]`."""
        inner = self.conv1(self.norm1(states))
        if self.time_emb_proj is not None and temb is not None:
            inner = inner + self.time_emb_proj(silu(temb))[:, :, None, None]
        inner = self.conv2(self.norm2(inner))
        shortcut = states if self.conv_shortcut is None else self.conv_shortcut(states)
        added: torch.Tensor = inner + shortcut
        return added


class FusedGeglu(nn.Module):
    """`GEGLU` with its projection."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        self.proj = layer.proj

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Turn `[R, Q, C]` into `[R, Q, I]`."""
        projected = self.proj(states)
        return geglu(projected.flatten(0, 1)).view(*projected.shape[:2], -1)


class FusedSelfAttention:
    """`AttnProcessor2_0` for simple layers with self-attention."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend within `[R, Q, C]`; the shape stays. These models use neither mask nor time
        here."""
        query, key, value = (
            split_heads(attn, projection(hidden_states))
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        return project_out(attn, attention(query, key, value))


def is_simple(attn: Attention) -> bool:
    """Whether the attention has only projections around it."""
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    scaled = attn.residual_connection or attn.rescale_output_factor != 1
    return all(extra is None for extra in extras) and not scaled


def split_heads(attn: Attention, states: torch.Tensor) -> torch.Tensor:
    """Reshape `[R, L, H·D]` to `[R, H, L, D]`."""
    rows, length, _ = states.shape
    return states.view(rows, length, int(attn.heads), -1).transpose(1, 2)


def project_out(attn: Attention, mixed: torch.Tensor) -> torch.Tensor:
    """Project `[R, Q, H·D]` to `[R, Q, C]`; the dropout that follows does nothing here."""
    projected: torch.Tensor = attn.to_out[0](mixed)
    return projected


def _attends_to_itself(attn: Attention) -> bool:
    is_usual = type(attn.processor) is AttnProcessor2_0
    return is_usual and is_simple(attn) and not attn.is_cross_attention


def _is_plain(block: ResnetBlock2D) -> bool:
    # Decoders of VAEs say "group", which without timesteps is the same.
    is_usual = block.time_embedding_norm == "default"
    is_timeless = block.time_embedding_norm == "group" and block.time_emb_proj is None
    return (
        type(block.nonlinearity) is nn.SiLU
        and (is_usual or is_timeless)
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and type(block.norm1) is type(block.norm2) is nn.GroupNorm
    )
