"""Lets models whose attention is written out in their own code call transformers' attention
interface."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor
from transformers.models.openai.modeling_openai import Attention as OpenAIGPTAttention
from transformers.models.xglm.modeling_xglm import XGLMAttention

Attend = Callable[..., Tensor]
"""Attention of a module: takes queries, keys and values, [1, H, T, D] each, the mask and the
interface's other arguments, and returns [1, T, H·D]."""


def has_own_attention(config: Any) -> bool:
    """Whether the model of a configuration is one of those that this file knows."""
    return config.model_type in _MODEL_TYPES


def open_attention(model: Any, implementation: str) -> None:
    """Choose an implementation of the interface, and let the attention modules call it while it is
    chosen."""
    model.config._attn_implementation = implementation
    for module in model.modules():
        forward = _FORWARDS.get(type(module))
        if forward is not None:
            module.forward = partial(_forward, model.config, implementation, forward, module)


def unread_inputs(config: Any) -> dict[str, Tensor]:
    """Inputs that our attention does not read but that the model's code needs."""
    return {"attention_mask": torch.ones(1, 1, 1, 1)} if config.model_type == "mpt" else {}


def _forward(
    config: Any,
    implementation: str,
    forward: Callable[..., Any],
    module: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if config._attn_implementation != implementation:
        return type(module).forward(module, *args, **kwargs)
    function = ALL_ATTENTION_FUNCTIONS[implementation]

    def attend(*tensors: Any, **others: Any) -> Tensor:
        mixed: Tensor = function(module, *tensors, **others)[0].flatten(2)
        return mixed

    return forward(attend, module, *args, **kwargs)


def _bloom(
    attend: Attend,
    module: Any,
    hidden: Tensor,
    residual: Tensor,
    *,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    query, key, value = module._reshape(module.query_key_value(hidden))
    slopes = _second(build_alibi_tensor, module.num_heads, hidden.device)
    scale = module.inv_norm_factor
    mixed = attend(query, key, value, attention_mask, scaling=scale, alibi=slopes)
    return residual + module.dense(mixed), None


def _falcon(
    attend: Attend,
    module: Any,
    hidden: Tensor,
    *,
    alibi: Tensor | None,
    attention_mask: Tensor | None = None,
    position_embeddings: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    heads = module._split_heads(module.query_key_value(hidden))
    query, key, value = (one.transpose(1, 2) for one in heads)
    scale, slopes = module.inv_norm_factor, None
    if alibi is None:
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    else:
        # The model has mixed the mask with its bias.
        attention_mask = None
        slopes = _second(build_alibi_tensor, module.num_heads, hidden.device)
        slopes = slopes.bfloat16().float() * scale
    mixed = attend(query, key, value, attention_mask, scaling=scale, alibi=slopes)
    return module.dense(mixed), None


def _mpt(
    attend: Attend,
    module: Any,
    hidden: Tensor,
    *,
    position_bias: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    packed = module.Wqkv(hidden)
    if module.clip_qkv:
        packed = packed.clamp(-module.clip_qkv, module.clip_qkv)
    heads = packed.view(*packed.shape[:2], 3, module.n_heads, module.head_dim)
    query, key, value = (heads[:, :, i].transpose(1, 2) for i in range(3))
    bias = build_mpt_alibi_tensor(module.n_heads, 2, device=hidden.device)
    slopes = (bias[:, 0, 1] - bias[:, 0, 0]).float()
    scale = module.softmax_scale
    mixed = attend(query, key, value, attention_mask, scaling=scale, alibi=slopes)
    return module.out_proj(mixed), None


def _openai_gpt(
    attend: Attend,
    module: Any,
    hidden: Tensor,
    attention_mask: Tensor | None = None,
    output_attentions: bool = False,
) -> list[Tensor]:
    heads = module.c_attn(hidden).unflatten(-1, (3, module.n_head, -1)).unbind(2)
    query, key, value = (one.transpose(1, 2) for one in heads)
    scale = None if module.scale else 1.0
    return [module.c_proj(attend(query, key, value, None, scaling=scale))]


def _projected(
    attend: Attend,
    module: Any,
    hidden: Tensor,
    *,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """GPT-Neo, whose scores have no scale and whose local layers look back a window, and XGLM."""
    projections = (module.q_proj, module.k_proj, module.v_proj)
    heads = (layer(hidden).unflatten(-1, (module.num_heads, -1)) for layer in projections)
    query, key, value = (one.transpose(1, 2) for one in heads)
    scale, window = getattr(module, "scaling", 1.0), None
    if getattr(module, "attention_type", None) == "local":
        attention_mask, window = None, module.config.window_size
    mixed = attend(query, key, value, attention_mask, scaling=scale, sliding_window=window)
    return module.out_proj(mixed), None


_MODEL_TYPES = ("bloom", "falcon", "gpt_neo", "mpt", "openai-gpt", "xglm")
_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    BloomAttention: _bloom,
    FalconAttention: _falcon,
    GPTNeoSelfAttention: _projected,
    MptAttention: _mpt,
    OpenAIGPTAttention: _openai_gpt,
    XGLMAttention: _projected,
}


def _second(build: Callable[..., Tensor], num_heads: int, device: torch.device) -> Tensor:
    """The biases of the second of two positions, which are the slopes, [H]."""
    ones = torch.ones(1, 2, dtype=torch.int64, device=device)
    return build(ones, num_heads, dtype=torch.float32)[:, 0, 1]
