"""Formats of weights in few bits: detection, tensors, memory and products, for all kinds of models.

Owns what a format is, one module each. Does not own files, names of layers or who serves them: text
models (`engine/weights/weight_plan.py`) and image models
(`engine/diffusion/families/quantized.py`) use the same formats. Start reading at `table.py`, then
`format.py` and `method.py`.
"""
