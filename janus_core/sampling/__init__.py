"""The samplers: image tokens, rectified flow, and text."""
