"""Whose turn is next: the policy and the waiting queue of every engine, and an engine for requests
that take turns, such as images that are enlarged tile by tile."""
