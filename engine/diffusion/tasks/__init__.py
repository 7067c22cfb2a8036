"""What happens to an image and its mask before denoising, and to the drawn picture after it."""
