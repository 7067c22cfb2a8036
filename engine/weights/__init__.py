"""Where checkpoints come from and how their tensors are read. Start at `engine/weights/source.py`."""
