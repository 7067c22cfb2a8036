"""How the built-in image model is made: data, training, evaluation. See docs/image_model.md."""
