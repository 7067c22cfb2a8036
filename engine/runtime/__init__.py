"""The machine: devices, threads, and the memory arbiter."""
