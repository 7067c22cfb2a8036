"""Small random text models and encoders, and their tokenizers."""
