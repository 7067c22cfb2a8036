"""Prepares an image and its mask for denoising, and finishes the drawn picture."""
