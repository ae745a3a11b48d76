"""The samplers: picture tokens, rectified flow, and text."""
