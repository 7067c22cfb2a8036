"""Servers in this process over fake engines, and their callers."""
