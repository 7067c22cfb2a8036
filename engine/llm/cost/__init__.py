"""What steps cost, and what fits into one."""
