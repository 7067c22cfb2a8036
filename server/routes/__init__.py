"""Routes, one module per family: each parses a body, asks the engine and answers. Each exports
`router`."""
