"""Processes beside the server and its workers: helpers, orders, limits and logs."""
