"""Commands of `tandem` besides `serve`, such as `chat` and `perplexity`. They ask a running server,
as any client would.

Some have the work done by a separate process, such as `engine.commands.quality`.
"""
