"""OpenAI's Responses API as a dialect: items to the messages of a chat, a chat's answer to items,
and the responses that are kept.

Owns no way into the engine: that is chat's. Start reading at `convert.py`.
"""
