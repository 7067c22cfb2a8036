"""Servers for the load generator, and sessions of requests."""
