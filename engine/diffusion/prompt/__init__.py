"""Reads prompts: weights in four syntaxes, chunks of the text encoder's length, encoder states.

`syntax` and `chunks` import no torch. `clip` and `t5` turn a prompt into states; a model family
joins the states of its encoders. Start reading at `syntax.parse_prompt`.
"""
