"""An arena: models answer the same prompts, a person or a judge model votes, ratings follow.

Start reading at `commands.py`.
"""
