"""ComfyUI's attention with the signature of janus_core.attention."""

from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked


def attention(q, k, v, mask=None, transformer_options=None):
    """janus_core.attention.attention, computed by the backend that ComfyUI chose."""
    function = optimized_attention if mask is None else optimized_attention_masked
    return function(
        q,
        k,
        v,
        q.shape[1],
        mask=mask,
        skip_reshape=True,
        skip_output_reshape=True,
        transformer_options=transformer_options or {},
    )
