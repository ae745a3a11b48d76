"""Choosing the loop that decodes image tokens; all of them give the same tokens."""

from functools import partial

from . import graph_decode, jacobi, tokens
from .cuda_graphs import Capture


def decode_loop(window: int = 1, width: int | None = None, capture: Capture | None = None, triton: bool | None = None):
    """The `decode` argument of sample_image_tokens.

    Args:
        window: positions per pass; over 1 means speculative (Jacobi) decoding, which takes precedence over graphs.
        width: tokens per row of the image, for the guesses of speculative decoding.
        capture: from cuda_graphs.capture_for; the model's weights must then stay where they are.
        triton: see graph_decode.decode_tokens.
    """
    if window > 1:
        return partial(jacobi.decode_tokens, window=window, width=width)
    if capture is not None:
        return partial(graph_decode.decode_tokens, capture=capture, triton=triton)
    return tokens.decode_tokens
