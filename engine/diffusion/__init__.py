"""The image engine, in which requests join and leave the running batch between denoising steps."""
