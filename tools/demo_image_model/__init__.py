"""Makes the built-in image model: data, training, evaluation. See docs/image_model.md."""
