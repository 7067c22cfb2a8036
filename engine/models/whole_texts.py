"""Hidden states of texts that a decoder computes whole and forgets, without engine or cache."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.contract.kv_layout import KvShape
from engine.models.causal_lm import CausalLM
from engine.models.forward_context import ForwardContext, GroupContext
from engine.models.recurrent_config import RecurrentConfig
from kernels import PagedBatch
from kernels.shared.recurrent_batch import NO_SLOT, RecurrentBatch
from kernels.shared.transfer import to_device

_BLOCK = 16


class WholeTexts:
    """A decoder and the memory for one pass.

    The keys and values of one layer lie in blocks that the next layer overwrites, unless a later
    layer reads them too. The same holds for its recurrent states.

    Args:
        max_tokens: the most tokens of all texts of a call together.
        max_texts: the most texts of a call.
        kv_dtype: the dtype in which keys and values are kept until they are read; None for the
            model's. int8 and float8_e4m3fn work as in a packed cache.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        max_tokens: int,
        max_texts: int,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        config, options = model.config, model.options
        self.model = model
        self._num_layers = config.num_hidden_layers
        sources, num_blocks = config.layer_kv_sources, max_tokens // _BLOCK + max_texts
        dtype = kv_dtype or options.dtype
        made: dict[tuple[KvShape, int | None], tuple[Tensor, Tensor | None]] = {}

        def memory_of(layer: int, kv_shape: KvShape) -> tuple[Tensor, Tensor | None]:
            """Return a layer's keys and values, and their scales if they are packed. Unwritten
            slots must hold finite numbers, because attention multiplies them by zero."""
            place = kv_shape, layer if sources.count(layer) > 1 else None
            if place not in made:
                shape = (num_blocks, 2, kv_shape.num_heads, _BLOCK)
                numbers = torch.zeros(
                    (*shape, kv_shape.head_dim), dtype=dtype, device=options.device
                )
                is_packed = dtype.itemsize == 1
                made[place] = (
                    numbers,
                    torch.zeros(shape, device=options.device) if is_packed else None,
                )
            return made[place]

        places = [memory_of(layer, kv) for layer, kv in enumerate(config.layer_kv_shapes)]
        self._caches = [numbers for numbers, _ in places]
        self._scales = [scales for _, scales in places]
        self._recurrent: dict[int, tuple[Tensor, Tensor]] = {}
        if isinstance(config, RecurrentConfig):
            state = config.shapes.allocate(max_texts, options.dtype, options.device)
            self._recurrent = dict.fromkeys(config.recurrent_layers, state)

    def states(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Compute hidden states.

        Args:
            texts: token ids in the order that `PagedBatch` requires: single rows first, then the
                longest.

        Returns:
            [T, C], normalised, text after text.
        """
        return self.model.forward(*self._lay_out(texts, [len(text) for text in texts]))

    def _lay_out(
        self, texts: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, ForwardContext]:
        """Return token ids and positions, [T] each, and the context, with each text's keys and
        values in blocks of its own, one after the other."""
        device = self.model.options.device
        num_blocks = [-(-length // _BLOCK) for length in lengths]
        first_blocks = np.cumsum([0, *num_blocks[:-1]])
        columns = np.arange(max(num_blocks))
        last = np.array(num_blocks)[:, np.newaxis] - 1
        # Entries after a text's last block repeat its first one.
        tables = first_blocks[:, np.newaxis] + np.where(columns <= last, columns, 0)
        offsets = np.zeros(len(texts) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        text_of_row = np.repeat(np.arange(len(texts)), lengths)
        positions = np.arange(offsets[-1]) - offsets[:-1][text_of_row]
        token_ids = np.array([token for text in texts for token in text])
        rows = np.stack(
            [
                token_ids,
                positions,
                tables[text_of_row, positions // _BLOCK],
                positions % _BLOCK,
            ]
        ).astype(np.int64)
        [inputs] = to_device([rows], device)
        batch = PagedBatch.from_host(
            tables.astype(np.int32),
            np.array(lengths, np.int32),
            offsets,
            list(lengths).count(1),
            device,
        )
        recurrent = None
        if self._recurrent:
            slots = np.arange(len(texts), dtype=np.int32)
            recurrent = RecurrentBatch.from_host(
                offsets, np.full_like(slots, NO_SLOT), slots, device
            )
        ctx = ForwardContext(
            groups=(GroupContext(batch, (inputs[2], inputs[3])),),
            group_of_layer=(0,) * self._num_layers,
            kv_caches=self._caches,
            kv_scales=self._scales,
            recurrent=recurrent,
            recurrent_states=self._recurrent,
        )
        return inputs[0], inputs[1], ctx
