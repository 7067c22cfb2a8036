"""Trains LoRA adapters for models that are served here: run by `tandem lora-train`.

transformers, diffusers and PEFT do the arithmetic, so that what is trained is what everybody else
loads, too. `loop.py` knows neither texts nor pictures: a `Learner` gives it a loss. Start reading
there; `text_learner.py` and `image_learner.py` are the two kinds.
"""
