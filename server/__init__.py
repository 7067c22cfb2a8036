"""The HTTP server: validates, admits, tokenises and streams. Never blocks, never imports torch.

Start reading at `server/app.py`; a request enters through `server/routes/`.
"""
