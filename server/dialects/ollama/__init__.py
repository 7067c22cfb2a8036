"""Ollama's API. Start reading at `routes.py`; `convert.py` says what each field becomes."""
