"""Measures what temperatures, samplers and signals do on a served model, for docs/sampling.md."""
