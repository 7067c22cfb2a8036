"""One module per route family: parse, ask the engine, answer. Each exports `router`."""
