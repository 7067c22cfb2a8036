"""The routes of LM Studio by which models are listed, loaded and unloaded."""
