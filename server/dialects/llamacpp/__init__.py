"""llama-server's own API. Start reading at `routes.py`; bodies are those of `/v1/completions`, by
its names."""
