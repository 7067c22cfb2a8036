"""Speculation: who guesses tokens, and how many."""
