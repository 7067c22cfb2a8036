"""Small upscaling networks and their files."""
