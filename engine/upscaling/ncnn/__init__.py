"""Models in ncnn's format: a text file of layers (`.param`) and one of their weights (`.bin`)."""
