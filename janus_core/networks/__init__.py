"""The networks. None of them knows of checkpoints, prompts or sampling."""
