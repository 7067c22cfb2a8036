"""What the engine asks of adapters: small changes to a model's weights, chosen per row."""

from typing import Protocol

from torch import Tensor

from engine.models.forward_context import RowAdapters

NO_ADAPTER = -1
"""The slot of rows that have none."""


class Adapters(Protocol):
    """Those that a model has loaded, in slots. Loop thread only.

    Attributes:
        version: another one when a recorded step must be recorded anew; 0 before there is any.
        change_logits: whether some of them change the output layer.
    """

    version: int

    @property
    def change_logits(self) -> bool: ...

    def slot_of(self, key: str) -> int:
        """Where the adapter of that key is, as long as some request has it
        (`engine.adapter_orders.AdapterShelf`).

        Raises:
            UnknownAdapter: there is none.
        """
        ...

    def of_rows(self, slots: Tensor) -> RowAdapters:
        """The adapters of a step's rows.

        Args:
            slots: [T] int32, `NO_ADAPTER` where a row has none. A recorded step reads it again
                each time that it is replayed, and nothing else that changes.
        """
        ...
