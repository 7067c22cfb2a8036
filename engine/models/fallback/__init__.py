"""Causal models of transformers that have no family here, on our scheduler and paged KV cache.

Owns how such a model is examined, built of our layers and transformers' code, and checked. Nothing
else here imports transformers. Start at `family.py`. Reasons:
`docs/decisions/023-models-without-a-family.md`.
"""
