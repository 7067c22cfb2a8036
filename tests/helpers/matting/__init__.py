"""Pictures with known alpha, and files of networks."""
