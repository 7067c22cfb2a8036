"""A load generator that speaks HTTP only and works against any OpenAI-compatible server."""
