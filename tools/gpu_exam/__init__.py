"""Examines Tandem on a machine with an NVIDIA GPU, in stages that can be resumed:
`python -m tools.gpu_exam --out FOLDER`. docs/gpu_results.md says how to use it.

It needs torch, Triton and transformers, and nothing of the server. With `--rehearse` it runs small
cases on the CPU, with Triton's interpreter.
"""
