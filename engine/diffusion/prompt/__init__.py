"""Prompts: weights in four syntaxes, chunks of the text encoder's length, and encoder states.

`syntax` and `chunks` know no torch. `clip` and `t5` turn a prompt into states; a model family
joins those of its encoders. Start reading at `syntax.parse_prompt`.
"""
