"""`tandem chat` and `tandem models`: commands that ask a running server, as any client would."""
