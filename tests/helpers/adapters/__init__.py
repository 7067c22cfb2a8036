"""LoRA files for tests, and what they should compute."""
