"""`tandem chat`: a conversation with a running server, over HTTP like any client.

Start at `command.py`. `conversation.py` keeps the messages, `slash_commands.py` does what a line
with `/` asks, `message_lines.py` reads what is typed.
"""
