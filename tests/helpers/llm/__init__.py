"""Random requests and engines without a model, or with a small one."""
