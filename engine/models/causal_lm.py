"""The interface that every decoder family offers to the engine."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext, RowAdapters
from engine.models.layers.embedding import LmHead
from engine.models.layers.experts import Experts
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import load_dummy_weights, load_weights
from engine.models.picture_encoder import PictureEncoder
from kernels.paged_attention.paged_batch import WIDEST_IN_TRITON


class CausalLM(nn.Module, ABC):
    """A decoder with its output layer. It is built without memory; weights come with
    `load_weights`."""

    lm_head: LmHead
    ends_take_adapters: ClassVar[bool] = False
    """Whether adapters can change embedding, norms and output layer, as they can linear layers."""
    picture_encoder: PictureEncoder | None
    """The encoder of pictures in prompts; None if the model takes none."""

    def __init__(self, config: ModelConfig, options: WeightOptions) -> None:
        super().__init__()
        self.config = config
        self.options = options
        self.picture_encoder = None

    @abstractmethod
    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """Compute one step.

        Args:
            token_ids: [T] int64.
            positions: [T] int64; [3, T] in time, height and width in a step with pictures that
                have these.
            ctx: its caches are mutated: the rows' keys and values are stored.

        Returns:
            [T, C], normalised hidden states.
        """

    @property
    def can_be_recorded(self) -> bool:
        """Whether a decode step launches the same operations for all tokens; known once weights are
        loaded. On a GPU recordings have no recurrent states, nor PyTorch's attention, which plans
        on the host."""
        is_wide = self.config.widest_head > WIDEST_IN_TRITON
        if self.options.device.type == "cuda" and (is_wide or self.config.recurrent_bytes(1)):
            return False
        mixtures = (module for module in self.modules() if isinstance(module, Experts))
        return all(experts.can_be_recorded for experts in mixtures)

    def leave_out_head(self) -> None:
        """Remove the output layer, before weights are loaded: the model will only compute
        states."""
        self.lm_head.part_from_embedding()
        del self.lm_head

    def compute_logits(self, hidden: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        """Compute fp32 logits [R, V] from [R, C], for the rows that need them only.

        Args:
            adapters: the rows' adapters; None if none of them changes the output layer.
        """
        return self.lm_head.forward(hidden, adapters)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Fill the model from pairs of checkpoint name and tensor; return the names that it
        ignored.

        Raises:
            MissingWeight: the checkpoint lacks a tensor.
            ShapeMismatch: a tensor's shape differs from the configuration's.
        """
        return load_weights(self, weights, self.options)

    def load_dummy_weights(self, seed: int = 0) -> None:
        """Fill the model with small random numbers."""
        load_dummy_weights(self, self.options, seed)
