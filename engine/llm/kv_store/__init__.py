"""KV blocks on a disk, which outlive the process (docs/decisions/037-kv-store.md)."""
