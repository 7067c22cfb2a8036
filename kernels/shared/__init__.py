"""What several operations use, in Python and in Triton: loops, layouts, and parts of their cases.

What one operation uses is in its own folder; the C++ headers are in `kernels/cpp/`.
"""
