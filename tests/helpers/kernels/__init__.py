"""Kernels with faults, and launches of kernels."""
