"""Evaluates language models over HTTP, on any OpenAI-compatible server: `tandem eval`.

Owns: tasks, scores with their intervals, comparisons of two models, votes and ratings. Imports
nothing from the project's server, engine or kernels. Start reading at `asking.py`.
"""
