"""One image request on the server's side: read its files, convert it, run it, answer it."""
