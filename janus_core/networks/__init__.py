"""The networks, independent of checkpoints, prompts and sampling."""
