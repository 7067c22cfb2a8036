"""Causal models of transformers without a family of their own, on our scheduler and paged KV cache.

This folder examines such a model, builds it from our layers and transformers' code, and checks it.
Nothing outside imports transformers. Start at `family.py`. Reasons:
`docs/decisions/023-models-without-a-family.md`. `wrapper.py` finds decoders inside larger models.
"""
