"""Python and Triton code that several operations use: loops, layouts, and parts of their cases.

Code for a single operation is in its own folder; the C++ headers are in `kernels/cpp/`.
"""
