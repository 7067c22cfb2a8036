"""The worker process of one model: its loop, and its supervision by the server process."""
