"""Mixtures of experts: a router chooses some MLPs for each token, and their results are added.

Tokens are sorted by expert. If all experts keep their weights in one format that
`kernels.linear_experts` takes, one call multiplies by the weights of all; otherwise each expert
that is needed multiplies its own rows. A token's result has the same bits either way and whichever
tokens share its experts: products give a row the same bits among any others, and a token's results
are added in the order of its router's choice.

Paper: Switch Transformers, Fedus et al. 2021, arXiv:2101.03961; Mixtral, Jiang et al. 2024,
arXiv:2401.04088.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mlp import MLP_NAMES, GatedMlp, MlpNames
from engine.models.layers.weight_slots import WeightOptions, WeightSlot, fp32_slots
from engine.quantization.grouped import GroupedState
from kernels import Routing, route_experts, sigmoid_mul, sum_experts
from kernels.native_recording import refuse_recording


@dataclass(frozen=True, slots=True)
class Scores:
    """How the weights of the chosen experts follow from a router's logits."""

    sigmoid: bool = False
    """Whether they are sigmoids instead of a softmax."""
    bias: str | None = None
    """The name, beside the router's, of what is added to the sigmoids for the choice alone."""
    factor: float = 1.0
    """The factor of the weights."""
    logit_factor: float = 1.0
    """The factor of the logits."""
    groups: tuple[int, int] | None = None
    """See `kernels.route_experts`."""


SOFTMAX = Scores()


class SharedExpert(NamedTuple):
    """An MLP that all tokens pass, beside the experts that are chosen."""

    name: str
    """Its name in the checkpoint."""
    inner: int
    """The size of its activations."""
    gated: bool = False
    """Whether its results are multiplied by the sigmoid of a gate, whose name ends in `_gate`."""


class PreciseLinear(Linear):
    """A small layer whose weights stay plain, since much depends on them, unless the checkpoint has
    them in few bits."""

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Name the layer's tensors."""
        self.path = path
        if options.method_for(self.shard_paths[0]).takes_plain_weights:
            options = replace(options, linear_method=None)
        return super().create_weights(path, options)


class Fp32Linear(PreciseLinear):
    """A precise layer with outputs in fp32, called with `in_fp32`."""

    takes_adapters = False


class Router(Fp32Linear):
    """A router, which chooses each token's experts in fp32.

    Args:
        name: the last part of the layer's path.
        top_k: experts per token.
        normalised: whether the chosen experts' weights are scaled to the sum of 1.
    """

    choice_bias: Tensor | None = None

    def __init__(
        self,
        name: str,
        hidden: int,
        num_experts: int,
        top_k: int,
        *,
        normalised: bool,
        bias: bool = False,
        scores: Scores = SOFTMAX,
    ) -> None:
        super().__init__(hidden, (Shard(name, num_experts),), bias=bias)
        self._top_k = top_k
        self._normalised = normalised
        self._scores = scores

    def choose(self, x: Tensor) -> Routing:
        """Choose the experts of the rows [T, C]."""
        logits = self.in_fp32(x)
        if self._scores.logit_factor != 1.0:
            logits.mul_(self._scores.logit_factor)
        found = route_experts(
            logits,
            self._top_k,
            normalised=self._normalised,
            sigmoid=self._scores.sigmoid,
            bias=self.choice_bias,
            groups=self._scores.groups,
        )
        factor = self._scores.factor
        return found if factor == 1.0 else replace(found, weights=found.weights * factor)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Name the layer's tensors, with the bias of the choice if there is one."""
        slots = super().create_weights(path, options)
        if self._scores.bias is not None:
            names, [shard] = {self._scores.bias: "choice_bias"}, self.shards
            neighbours, shape = path.rpartition(".")[0], (shard.out_features,)
            slots |= fp32_slots(self, neighbours, names, shape, options)
        return slots


@dataclass(frozen=True, slots=True)
class _Grouped:
    """The layers of all experts together."""

    gate_up: GroupedState
    down: GroupedState


class Experts(nn.ModuleList):
    """MLPs of one shape, by number.

    Args:
        hidden, inner: sizes of the inputs and outputs, and of the activations between.
        act: the experts' activation.
        names: the names of the experts' layers.
        bias: whether these layers have biases.
        gate: replaces the gated activation that `act` names.
    """

    def __init__(
        self,
        number: int,
        hidden: int,
        inner: int,
        act: str,
        *,
        names: MlpNames = MLP_NAMES,
        bias: bool = False,
        gate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        mlps = [GatedMlp(hidden, inner, act, bias=bias, names=names) for _ in range(number)]
        for mlp in mlps:
            mlp.gate = gate or mlp.gate
            mlp.down_proj.adds_ranks = False  # the ranks' sums of the chosen experts are added
        super().__init__(mlps)
        self._mlps = tuple(mlps)

    def mix(self, x: Tensor, routing: Routing, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C], the sum of the chosen experts' outputs times their weights, added
        in fp32 in the order of the choice and rounded once."""
        grouped = self._grouped if ctx.adapters is None else None
        if grouped is None:
            answers = self._one_by_one(x, routing, ctx)
        else:
            inner = grouped.gate_up.multiply(x, routing.starts, routing.rows)
            answers = grouped.down.multiply(self._mlps[0].gate(inner), routing.starts)
        chosen = sum_experts(answers, routing.weights, routing.places)
        return self._mlps[0].down_proj.parallel.sum(chosen)

    @property
    def can_be_recorded(self) -> bool:
        """Whether the host takes no decision during the computation; known once weights are
        loaded."""
        return self._grouped is not None

    @cached_property
    def _grouped(self) -> _Grouped | None:
        gate_up = GroupedState.of([expert.gate_up_proj.state for expert in self._mlps])
        down = GroupedState.of([expert.down_proj.state for expert in self._mlps])
        return None if gate_up is None or down is None else _Grouped(gate_up, down)

    def _one_by_one(self, x: Tensor, routing: Routing, ctx: ForwardContext) -> Tensor:
        """Compute [T·k, C], sorted by expert, one expert at a time. The host must know where
        experts change, so a GPU waits for the router here, and a recording would keep that
        choice."""
        refuse_recording("each expert multiplies rows that were chosen for this step")
        answers = x.new_empty(len(routing.rows), x.shape[1])
        for number, (first, last) in enumerate(itertools.pairwise(routing.starts.tolist())):
            if first < last:
                rows = routing.rows[first:last]
                answers[first:last] = self._mlps[number](x[rows], _context_of(rows, ctx))
        return answers


class SparseMlp(nn.Module):
    """A router and its experts, and possibly an expert that all tokens pass.

    Args:
        hidden, inner: sizes of the inputs and outputs, and of the activations in an expert.
        act: the experts' activation.
        names: the names of the experts' layers.
        bias: whether the router and these layers have biases.
        gate: see `Experts`.
        scores: how the router weighs experts.
        router: the router's name.
        shared: the expert that all tokens pass.
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
        bias: bool = False,
        gate: Callable[[Tensor], Tensor] | None = None,
        scores: Scores = SOFTMAX,
        router: str = "gate",
        shared: SharedExpert | None = None,
    ) -> None:
        super().__init__()
        self._shared = shared
        if shared is not None:
            self.add_module(shared.name, GatedMlp(hidden, shared.inner, act, names=names))
            if shared.gated:
                gate_name = f"{shared.name}_gate"
                self.add_module(gate_name, PreciseLinear(hidden, (Shard(gate_name, 1),)))
        self.gate = Router(
            router, hidden, num_experts, top_k, normalised=normalised, bias=bias, scores=scores
        )
        self.experts = Experts(num_experts, hidden, inner, act, names=names, bias=bias, gate=gate)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        chosen = self.experts.mix(x, self.gate.choose(x), ctx)
        return chosen if self._shared is None else chosen.add_(self._pass_shared(x, ctx))

    __call__ = forward

    def _pass_shared(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        assert self._shared is not None
        name = self._shared.name
        y: Tensor = self.get_submodule(name)(x, ctx)
        if not self._shared.gated:
            return y
        gate: Tensor = self.get_submodule(f"{name}_gate")(x, ctx)
        return sigmoid_mul(torch.cat((gate.expand_as(y), y), 1))


def _context_of(rows: Tensor, ctx: ForwardContext) -> ForwardContext:
    """Return the context of some of the step's rows, as far as linear layers need it."""
    if ctx.adapters is None:
        return ctx
    return replace(ctx, adapters=ctx.adapters.at(rows))
