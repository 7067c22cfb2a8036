"""The head of a `…ForSequenceClassification` with one label: a text's state in, a score out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import MissingWeight
from engine.models.layers.weight_slots import WeightOptions
from engine.quantization.method import TensorSpec
from engine.quantization.plain import PlainState


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadForm:
    """A head's layers by their names in the checkpoint. The state passes a dense layer, an
    activation and a layer norm, as far as there are any, and then the last layer."""

    pooling: Literal["cls", "mean", "last"] = "cls"
    """How the states of a text's tokens become one."""
    dense: str | None = None
    dense_bias: bool = True
    activation: Callable[[Tensor], Tensor] | None = None
    norm: str | None = None
    norm_bias: bool = True
    norm_eps: float = 0.0
    out: str
    out_bias: bool = True

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """The head's tensors, by name, for states of that size."""
        layers = (
            (self.dense, (size, size), self.dense_bias),
            (self.norm, (size,), self.norm_bias),
            (self.out, (1, size), self.out_bias),
        )
        found: dict[str, tuple[int, ...]] = {}
        for name, shape, has_bias in layers:
            if name is not None:
                found[f"{name}.weight"] = shape
                found |= {f"{name}.bias": shape[:1]} if has_bias else {}
        return found


class ScoreHead:
    """A head with its weights, kept in fp32.

    Args:
        tensors: the head's tensors, by name.

    Raises:
        MissingWeight, ShapeMismatch: the message names the tensor.
    """

    def __init__(
        self, form: HeadForm, tensors: Mapping[str, Tensor], size: int, options: WeightOptions
    ) -> None:
        self._form = form
        self._method = options.plain_method()
        self._size = size
        self._tensors: dict[str, Tensor] = {}
        for name, shape in form.shapes(size).items():
            if name not in tensors:
                raise MissingWeight(f"the checkpoint lacks {name}, a tensor of its head for scores")
            TensorSpec(shape=shape).check(name, tensors[name])
            self._tensors[name] = tensors[name].to(options.device, torch.float32, copy=True)
        self._dense = None if form.dense is None else self._arranged(form.dense)
        self._out = self._arranged(form.out)

    def __call__(self, states: Tensor) -> Tensor:
        """Map [B, C] in fp32 to [B]. Each state is computed alone, as PyTorch's activations compute
        a number by its place among all."""
        return torch.cat([self._score(state) for state in torch.split(states, 1)])

    def _score(self, x: Tensor) -> Tensor:
        """Map [1, C] to [1]."""
        form = self._form
        if self._dense is not None:
            x = self._method.apply(self._dense, x)
        if form.activation is not None:
            x = form.activation(x)
        if form.norm is not None:
            weight, bias = self._tensors[f"{form.norm}.weight"], self._bias(form.norm)
            x = F.layer_norm(x, (self._size,), weight, bias, form.norm_eps)
        return self._method.apply(self._out, x)[:, 0]

    def _arranged(self, name: str) -> PlainState:
        return self._method.arrange(self._tensors[f"{name}.weight"], self._bias(name))

    def _bias(self, name: str) -> Tensor | None:
        return self._tensors.get(f"{name}.bias")
