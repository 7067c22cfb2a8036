"""What temperatures, samplers and signals do on a served model, measured: docs/sampling.md."""
