"""Where tiles begin along a side of an image, for all engines that cut images up."""


def spread(length: int, tile: int, overlap: int) -> list[int]:
    """Places of as few tiles as overlap enough, the first at 0 and the last at the end. They are
    spread evenly: none is smaller than the others, so all see as much around them.

    Args:
        overlap: of neighbours, at least; no more than `tile - 1` can be had.
    """
    if length <= tile:
        return [0]
    num_gaps = -(-(length - tile) // max(1, tile - overlap))
    return [number * (length - tile) // num_gaps for number in range(num_gaps + 1)]
