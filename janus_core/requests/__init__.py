"""Requests for generation, editing and understanding in TorchUMM's form, run by a loaded pipeline."""

from .request import Request
from .runner import Runner

__all__ = ["Request", "Runner"]
