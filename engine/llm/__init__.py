"""Text generation: schedule → execute → commit, one token budget shared by all requests.

Start at `engine/llm/engine.py::LLMEngine.step`.
"""
