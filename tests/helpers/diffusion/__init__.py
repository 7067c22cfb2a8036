"""Small image models, and runs of them."""
