"""KV blocks that one worker computes and another one uses (docs/decisions/041-prefill-apart.md)."""
