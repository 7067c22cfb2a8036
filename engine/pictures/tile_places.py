"""Where tiles begin along a side of an image, for all engines that divide images."""


def spread(length: int, tile: int, overlap: int) -> list[int]:
    """The positions of as few tiles as give the overlap, the first at 0 and the last at the end.
    They are spread evenly, so that all tiles overlap their neighbours about equally.

    Args:
        overlap: the least overlap of neighbours; at most `tile - 1`.
    """
    if length <= tile:
        return [0]
    num_gaps = -(-(length - tile) // max(1, tile - overlap))
    return [number * (length - tile) // num_gaps for number in range(num_gaps + 1)]
