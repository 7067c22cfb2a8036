"""Decoder families, one self-contained file each. Start at `engine/models/registry.py`.

Modules set `__call__ = forward`: this types their calls and skips the hooks of `nn.Module`, which
are not used here and would take a twentieth of a decode step of a small model.
"""
