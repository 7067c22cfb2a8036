"""A server for the evaluation, in memory."""
