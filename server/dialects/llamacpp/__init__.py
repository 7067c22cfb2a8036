"""llama-server's own API. Start reading at `routes.py`; its bodies are those of `/v1/completions`
with other names."""
