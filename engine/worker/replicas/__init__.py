"""Several workers of one model behind one id: who takes a request, and what they are together.

Start reading at `router`, which is pure: it has no clock, no input and no output, so it also runs
in virtual time (`tools/scaling`).
"""
