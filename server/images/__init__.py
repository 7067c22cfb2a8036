"""The server's side of an image request: read its files, convert it, run it, answer it."""
