"""LoRA adapters of image models: of denoisers and text encoders, linear layers and convolutions.

`layers.py` adds adapters' changes to the outputs of a model's layers, row by row; `names.py` knows
the layers by all the names that trainers write; `files.py` examines and checks a file; `forms.py`
lists the ways to write a change, a module each; `image_adapters.py` keeps the adapters that a model
has now.
"""
