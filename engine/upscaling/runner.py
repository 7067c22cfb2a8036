"""Runs a network over tiles, and over smaller ones if memory runs out."""

import structlog
import torch
from torch import Tensor

from engine.pictures.tiles import Side, TileRows
from engine.runtime.fault import is_out_of_memory
from engine.upscaling.network import Network

_LEAST_TILE = 32
"""The side in pixels below which a smaller tile would not help."""

log = structlog.get_logger(__name__)


class TileRunner:
    """Runs all tiles of an engine. Results are on the CPU, in float32.

    Attributes:
        largest: the side of the largest tile that is run whole, once memory has run out.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self._network = network
        self._device = device
        self.largest: int | None = None

    @torch.inference_mode()
    def run(self, tiles: Tensor, overlap: int, rim: int) -> Tensor:
        """The network's output for tiles, `[B, 3, H, W]`.

        Args:
            overlap, rim: of smaller tiles, if they become necessary.

        Raises:
            RuntimeError, MemoryError: memory runs out even for the smallest tiles that the overlap
                allows.
        """
        if self.largest is None or max(tiles.shape[2:]) <= self.largest or self.largest <= overlap:
            try:
                return self._whole(tiles)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(tiles) == 1 and not self._halve(max(tiles.shape[2:]), overlap):
                    raise
        if len(tiles) > 1:
            return torch.cat([self.run(tile[None], overlap, rim) for tile in tiles])
        return self._in_parts(tiles, overlap, rim)

    def forget(self) -> None:
        """Use large tiles again, as memory may be free now."""
        self.largest = None

    def _whole(self, tiles: Tensor) -> Tensor:
        given = tiles.to(self._device, memory_format=torch.channels_last)
        return self._network(given).float().cpu()

    def _halve(self, side: int, overlap: int) -> bool:
        """Use smaller tiles from now on; whether there can be such."""
        multiple = self._network.facts.size_multiple
        smaller = -(-side // 2 // multiple) * multiple
        if smaller < max(_LEAST_TILE, self._network.facts.min_side) or smaller <= overlap:
            return False
        log.warning("memory ran out for a tile; using smaller ones", side=side, then=smaller)
        self.largest = smaller
        return True

    def _in_parts(self, tile: Tensor, overlap: int, rim: int) -> Tensor:
        assert self.largest is not None
        facts = self._network.facts
        down, across = (
            Side.planned(length, self.largest, overlap, facts.size_multiple)
            for length in tile.shape[2:]
        )
        merged = TileRows(
            across.scaled(facts.scale), down.scaled(facts.scale), rim * facts.scale, tile.shape[1]
        )
        finished = []
        for number, (top, left) in enumerate((y, x) for y in down.starts for x in across.starts):
            part = tile[:, :, top : top + down.tile, left : left + across.tile]
            rows = merged.add(number, self.run(part, overlap, rim)[0])
            if rows is not None:
                finished.append(rows)
        return torch.cat(finished, 1)[None]
