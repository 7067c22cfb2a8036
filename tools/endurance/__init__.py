"""Endurance: a server under mixed traffic for hours (`soak`), and under faults (`chaos`).

Speaks HTTP and looks at processes from outside; knows nothing of the server's code. Start reading
at `order.py` (what is asked), `judge.py` (what must hold), then `soak.py` and `chaos.py`.
"""
