"""The wire format: one module of bodies per route family. No logic beyond validation."""
