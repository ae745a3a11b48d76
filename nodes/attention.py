"""ComfyUI's attention with the signature of janus_core.attention."""

from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked

from ..janus_core.attention import attention as default_attention

OVERRIDE = "optimized_attention_override"  # key in transformer_options: a function that replaces the attention


def attention(q, k, v, mask=None, transformer_options=None):
    """janus_core.attention.attention, computed by the backend that ComfyUI chose.

    On a CPU ComfyUI's default computes in slices to save memory; ours is faster there and is used unless a node
    overrides it.
    """
    transformer_options = transformer_options or {}
    if q.device.type == "cpu" and OVERRIDE not in transformer_options:
        return default_attention(q, k, v, mask)
    function = optimized_attention if mask is None else optimized_attention_masked
    return function(
        q,
        k,
        v,
        q.shape[1],
        mask=mask,
        skip_reshape=True,
        skip_output_reshape=True,
        transformer_options=transformer_options,
    )
