"""What tasks with pictures share: arrays, alpha, sizes and tiles.

`arrays` and `alpha` need numpy only. Each way of resampling has one home, because the libraries
differ in the last bits of their results: `resampling` (sparse matrices, for pictures that
come row by row), `resizing` (OpenCV) and `tensors` (torch).
"""
