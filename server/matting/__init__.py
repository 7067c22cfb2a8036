"""Background removal: bodies to matting requests, mattes to answers."""
