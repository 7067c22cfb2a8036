"""LoRA adapters: their files, where they are kept, and what they add to rows of a step.

`file_parts.py` holds the checks of all adapter files; `peft_files.py` reads what PEFT has saved for
a text model. `loaded_adapters.py` loads and unloads adapters. `slots.py` keeps all adapters of a
text model side by side and adds them, each row its own, never merged into the weights.

Papers: Hu et al. 2021, arXiv:2106.09685; Chen et al. 2023 (Punica), arXiv:2310.18547.
"""
