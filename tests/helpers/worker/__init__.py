"""Clients whose workers need no model."""
