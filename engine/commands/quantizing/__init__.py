"""Checkpoints of fewer bits, made from plain ones by `tandem quantize`.

They can be read by transformers, llama.cpp and others. Nothing that exists is overwritten. Start
reading at `order.py`.
"""
