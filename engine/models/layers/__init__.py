"""The parts that decoder families share: linear methods, attention, norms, embeddings, RoPE."""
