"""KV blocks that one worker computes and another one uses (docs/decisions/040-prefill-apart.md)."""
