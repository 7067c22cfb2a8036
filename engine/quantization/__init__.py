"""Formats of weights in few bits: detection, tensors, memory and products, for all kinds of models.

Each format is a module. Files, names of layers and the models that use formats are elsewhere: text
models (`engine/weights/weight_plan.py`) and image models (`engine/diffusion/families/quantized.py`)
use the same formats. Start reading at `formats.py`, then `format.py` and `method.py`.
"""
