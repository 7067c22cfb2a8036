"""Token ids in, logits out: the two ends of a decoder, which often share one matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.layers.linear_method import LinearMethod, LinearPart
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot


class TokenEmbedding(nn.Module, WeightOwner):
    """[V, C]; on every rank whole.

    Args:
        scale: factor of what is looked up, rounded to the weights' dtype.
    """

    weight: Tensor

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (vocab_size, hidden_size)
        self._scale = scale

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] int64 → [T, C], new memory."""
        rows = F.embedding(token_ids, self.weight)
        return rows if self._scale == 1.0 else rows.mul_(self._scale)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._scale = torch.tensor(self._scale).to(options.dtype).item()

        def load(tensor: Tensor) -> None:
            self.weight = torch.empty(self.shape, dtype=options.dtype, device=options.device)
            self.weight.copy_(tensor)

        return {f"{path}.weight": WeightSlot(self.shape, load)}


class LmHead(nn.Module, WeightOwner):
    """The output layer. A tied one uses the embedding's matrix.

    On a CPU that packs weights, a tied head keeps its own packed copy beside the embedding: a
    lookup needs plain rows, and plain rows multiply at two thirds of the speed. A method whose
    weights come packed asks the checkpoint for them a second time.

    Args:
        soft_cap: c bends each logit x to c·tanh(x / c); None leaves them as they are.
    """

    def __init__(
        self, embedding: TokenEmbedding, *, tied: bool, soft_cap: float | None = None
    ) -> None:
        super().__init__()
        self.shape = embedding.shape
        self._soft_cap = soft_cap
        # In a tuple so that the embedding does not become a submodule twice.
        self._tied: tuple[TokenEmbedding, ...] = (embedding,) if tied else ()
        self._method: LinearMethod
        self._part: LinearPart

    def forward(self, hidden: Tensor) -> Tensor:
        """[R, C] → [R, V], logits in fp32."""
        logits = self._method.apply_in_fp32(self._part, hidden)
        if self._soft_cap is not None:
            logits.div_(self._soft_cap).tanh_().mul_(self._soft_cap)
        return logits

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        vocab_size, hidden_size = self.shape
        self._part = LinearPart(
            in_features=hidden_size,
            out_features=(vocab_size,),
            has_bias=False,
            dtype=options.dtype,
            device=options.device,
        )
        self._method = options.method_for(path)
        if self._arranges_embedding():
            return {}
        load = lambda tensor: self._part.take(0, "weight", tensor)  # noqa: E731
        shape = self._method.create_weights(hidden_size, vocab_size, False)["weight"]
        return {f"{path}.weight": WeightSlot(shape, load)}

    def _arranges_embedding(self) -> bool:
        return bool(self._tied) and self._method.takes_plain_weights

    def process_weights_after_loading(self) -> None:
        if self._arranges_embedding():
            self._method.arrange(self._part, self._tied[0].weight)
        else:
            self._method.process_weights_after_loading(self._part)
