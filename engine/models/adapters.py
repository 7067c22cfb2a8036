"""The interface through which the engine uses adapters: small changes to a model's weights, chosen
per row."""

from typing import Protocol

from torch import Tensor

from engine.models.forward_context import RowAdapters

NO_ADAPTER = -1
"""The slot of rows without an adapter."""


class Adapters(Protocol):
    """The adapters that a model has loaded, in slots. Loop thread only.

    Attributes:
        version: changes when recorded steps must be recorded again; 0 before there is any adapter.
        change_logits: whether some adapters change the output layer.
    """

    version: int

    @property
    def change_logits(self) -> bool: ...

    def slot_of(self, key: str) -> int:
        """Return the slot of an adapter by its key, valid as long as some request has the adapter
        (`engine.contract.adapter_orders.ServedAdapters`).

        Raises:
            UnknownAdapter: there is no adapter of that key.
        """
        ...

    def of_rows(self, slots: Tensor) -> RowAdapters:
        """Return the adapters of a step's rows.

        Args:
            slots: [T] int32, `NO_ADAPTER` where a row has none. A recorded step reads this tensor
                again at each replay; nothing else may change between replays.
        """
        ...
