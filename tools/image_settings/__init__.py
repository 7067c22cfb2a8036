"""What settings of image requests and servers change: with each, the built-in model draws the same
prompts from the same seeds, and a program judges the pictures."""
