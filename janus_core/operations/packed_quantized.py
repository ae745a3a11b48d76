"""How the quantised weights of linear layers are packed: the one rule for our layers and for ComfyUI's."""

from . import packed_int8
from .packed import PackedProducts


class PackedQuantizedProducts(PackedProducts):
    """PackedProducts of a linear layer that may have a quantised weight.

    int8 weights are multiplied as int8 where the processor can; other quantised weights are dequantised once, when
    first used. How a weight is stored is the layer's to say:

    - `is_quantized()`: whether its weight is.
    - `int8_parts()`: (int8 values [out, in], float32 scales, one or one per output); None for other formats.
    - `dequantized()`: the weight [out, in].
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packed_int8 = packed_int8.PackedInt8Weight()

    def packed_form(self, x) -> str | None:
        form = super().packed_form(x)
        if form is None or not self.is_quantized():
            return form
        return "int8" if self.int8_parts() is not None and packed_int8.available() else "dequantized"

    def packed_product(self, x, layers):
        form = self.packed_form(x)
        if form == "packed":
            return super().packed_product(x, layers)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        if form == "int8":
            values, scales = zip(*(layer.int8_parts() for layer in layers))
            return self.packed_int8.linear(x, weights, biases, values, scales)
        return self.packed.linear(x, weights, biases, lambda: [layer.dequantized() for layer in layers])

    def clear_packed(self):
        super().clear_packed()
        self.packed_int8.clear()
