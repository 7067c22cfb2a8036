"""Decoder families, one self-contained file each. Start at `engine/models/registry.py`.

Modules set `__call__ = forward`: calls are typed that way, and the hooks of `nn.Module`, which
nobody here uses, would take a twentieth of a decode step of a small model.
"""
