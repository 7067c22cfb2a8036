"""LoRA adapters of image models: of denoisers and text encoders, linear layers and convolutions.

`layers.py` adds what adapters change to the outputs of a model's layers, row by row; `names.py`
knows the layers by all the names that trainers write; `files.py` finds out what a file has, and
checks it; `forms.py` lists the ways to write a change, a module each; `table.py` keeps the adapters
that a model has now.
"""
