"""Trains LoRA adapters for models that are served here, for `tandem lora-train`.

transformers, diffusers and PEFT do the arithmetic, so that other programs can load the result, too.
`loop.py` works for any model: a `Learner` gives it a loss. Start reading there; `text_learner.py`
and `image_learner.py` are the two kinds.
"""
