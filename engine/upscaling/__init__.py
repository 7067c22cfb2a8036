"""Enlarging images, tile by tile: networks, their files, tiles and seams, the engine."""
