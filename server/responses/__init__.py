"""OpenAI's Responses API as a dialect: converts items to the messages of a chat, and a chat's
answer to items, and stores responses.

It has no way of its own into the engine: the chat's way is used. Start reading at `convert.py`.
"""
