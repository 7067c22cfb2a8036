"""Plans a model's memory and speed on a device from headers, before any weight is read. `tandem
plan` prints the plan, and an engine that finds too little memory shows it.

It contains the arithmetic and not the decision: `engine.contract.resolved_config.resolve` sizes
what is served, with the same numbers. Start reading at `text.py`.
"""
