"""The API of AUTOMATIC1111's web UI. Start at `routes.py`; `convert.py` says what each field
becomes."""
