"""What commands of the terminal do with checkpoints, each in a process of its own and without an
engine that serves."""
