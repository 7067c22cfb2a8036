"""The paged KV cache: blocks, their owners and their storage."""
