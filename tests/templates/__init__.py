"""Writes the workflow templates and blueprints: `python -m tests.templates`, and `thumbnails` for their images."""
