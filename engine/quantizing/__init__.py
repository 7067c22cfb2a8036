"""Checkpoints of fewer bits, made of plain ones: run by `tandem quantize`.

Writes what transformers, llama.cpp and others read, too, and never over something that is there.
Start reading at `order.py`.
"""
