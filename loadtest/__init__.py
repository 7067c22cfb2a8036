"""A load generator that speaks HTTP only and works against any OpenAI-compatible server.

Owns: workloads, the client, the measurements, their tables and plots, the comparison of servers.
Imports nothing from the project's server, engine or kernels. Start reading at `cli.py`.
"""
