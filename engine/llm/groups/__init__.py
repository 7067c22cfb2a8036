"""Ways to search: sequences that are decided together."""
