"""Enlarges images tile by tile: networks, their files, tiles and seams, and the engine."""
