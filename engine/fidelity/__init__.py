"""How closely a larger picture keeps to the one that it was made of, and ways to bring it back.

Owns: the comparison of a result with its input, and what brings the result closer to it. Does not
own: how results are made. Arrays of numpy only, in bands of rows, so that pictures of 8K need
little beside themselves. Start reading at `consistency.py`.
"""
