"""Images: requests join and leave the running batch between two denoising steps."""
