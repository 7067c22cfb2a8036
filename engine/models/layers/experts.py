"""Mixtures of experts: a router chooses some MLPs for each token, and their answers are added up.

Tokens are sorted by expert, and each expert that is wanted multiplies its own in one call, with
weights in any format that linear layers may have. A token's result has the same bits whoever shares
its experts: products give a row the same bits among any others, and a token's answers are added in
the order of its router's choice.

Paper: Switch Transformers, Fedus et al. 2021, arXiv:2101.03961; Mixtral, Jiang et al. 2024,
arXiv:2401.04088.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mlp import MLP_NAMES, GatedMlp, MlpNames
from engine.models.layers.weight_slots import WeightOptions, WeightSlot


class Router(Linear):
    """Chooses each token's experts, in fp32.

    Args:
        name: the last part of its path.
        top_k: experts per token.
        normalised: the chosen ones' weights are scaled to the sum of 1.
    """

    takes_adapters = False

    def __init__(
        self, name: str, hidden: int, num_experts: int, top_k: int, *, normalised: bool
    ) -> None:
        super().__init__(hidden, (Shard(name, num_experts),))
        self._top_k = top_k
        self._normalised = normalised

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, C] → experts [T, k] int64, the best first, and their weights [T, k] fp32."""
        weights, experts = self.in_fp32(x).softmax(-1).topk(self._top_k, -1)
        if self._normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return experts, weights

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Plain unless the checkpoint has few bits: choices hang on these weights."""
        if options.method_for(path).takes_plain_weights:
            options = replace(options, linear_method=None)
        return super().create_weights(path, options)


class SparseMlp(nn.Module):
    """A router and its experts.

    Args:
        hidden, inner: sizes of what goes in and comes out, and of what lies between in an expert.
        act: the experts' activation.
        names: of the experts' layers.
    """

    def __init__(
        self,
        hidden: int,
        inner: int,
        act: str,
        *,
        num_experts: int,
        top_k: int,
        normalised: bool,
        names: MlpNames = MLP_NAMES,
    ) -> None:
        super().__init__()
        self.gate = Router("gate", hidden, num_experts, top_k, normalised=normalised)
        self.experts = nn.ModuleList(
            GatedMlp(hidden, inner, act, names=names) for _ in range(num_experts)
        )

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, C] → [T, C]."""
        choice, weights = self.gate.choose(x)
        return mix(x, self.experts, choice, weights, ctx)  # type: ignore[arg-type]

    __call__ = forward


def mix(
    x: Tensor, experts: Sequence[GatedMlp], choice: Tensor, weights: Tensor, ctx: ForwardContext
) -> Tensor:
    """The sum of the chosen experts' answers, each times its weight.

    Args:
        x: [T, C].
        choice: [T, k] int64, numbers of experts.
        weights: [T, k] fp32.

    Returns:
        [T, C]; summed in fp32, in the order of `choice`, rounded once.
    """
    num_tokens, top_k = choice.shape
    chosen = choice.flatten()
    order = chosen.argsort(stable=True)
    token_of_row = order // top_k
    # Where experts change is needed on the host: a GPU waits for the router here.
    counts = torch.bincount(chosen, minlength=len(experts)).tolist()
    answers = x.new_empty(num_tokens * top_k, x.shape[1])
    first = 0
    for number, count in enumerate(counts):
        if count:
            rows = token_of_row[first : first + count]
            answer = experts[number](x[rows], _context_of(rows, ctx))
            answers[order[first : first + count]] = answer
            first += count
    ranked = answers.view(num_tokens, top_k, x.shape[1])
    total = ranked[:, 0].float() * weights[:, :1]
    for rank in range(1, top_k):
        total += ranked[:, rank].float() * weights[:, rank : rank + 1]
    return total.to(x.dtype)


def _context_of(rows: Tensor, ctx: ForwardContext) -> ForwardContext:
    """Of some of the step's rows, as far as linear layers are concerned."""
    if ctx.adapters is None:
        return ctx
    return replace(ctx, adapters=ctx.adapters.at(rows))
