"""The fields of config.json and its companions that are read: types, ranges, and the values that are supported.

A field that is missing or null has the value of the official checkpoints. Fields that are not listed are ignored.
"""

from ..errors import CheckpointError
from ..schema import Items, Number, OneOf, Section, Text, Whole, check_fields, shown

SIZE = Whole(1, 2**24)
COUNT = Whole(1, 1000)
EPS = Number(1e-12, 0.1)
SIGLIP_LAYERS = {("siglip_large_patch16_384", 1024): 24}  # by model_name and width, where the config does not say

LANGUAGE = {
    "model_type": OneOf(("llama",)),
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads": COUNT,
    "head_dim": Whole(2, 1024),
    "max_position_embeddings": Whole(16, 2**20),
    "rms_norm_eps": EPS,
    "rope_theta": Number(1, 1e9),
    "rope_scaling": Section(),
    "rope_parameters": Section(),
    "hidden_act": OneOf(("silu",)),
    "attention_bias": OneOf((False,)),
    "mlp_bias": OneOf((False,)),
}
ROPE = {"rope_type": OneOf(("default",)), "type": OneOf(("default",)), "rope_theta": Number(1, 1e9)}
VISION = {
    "image_size": SIZE,
    "num_attention_heads": COUNT,
    "num_hidden_layers": COUNT,
    "layer_norm_eps": EPS,
    "model_name": Text(),
    "hidden_act": OneOf(("gelu",)),
    "select_feature": OneOf(("same",)),
    "select_layer": OneOf((-1, 0)),  # both are the last layer in the original implementation
}
PROJECTOR = {"depth": COUNT, "input_dim": SIZE, "n_embed": SIZE, "projector_type": OneOf(("mlp_gelu",))}
HEAD = {"image_token_embed": SIZE, "image_token_size": SIZE, "n_embed": SIZE}
CODEBOOK = {"image_token_size": SIZE, "n_embed": SIZE}
FLOW_BLOCKS = {
    "layers_in_middle": COUNT,
    "block_out_channels": Items(SIZE, 1, 1),
    "hidden_size": SIZE,
    "norm_eps": EPS,
    "use_mid_block": OneOf((True,)),
}
FLOW_ENCODER = {
    "input_channels": SIZE,
    "stride": Whole(1, 64),
    "kernel_size": Whole(1, 64),
    "padding": Whole(0, 64),
    **FLOW_BLOCKS,
}
FLOW_DECODER = {"in_channels": SIZE, "out_channels": SIZE, "upsamples": Whole(1, 6), **FLOW_BLOCKS}
PROCESSOR = {"num_image_tokens": SIZE, "sft_format": OneOf(("deepseek", "deepseek_old"))}
PREPROCESSOR = {  # these are warned about, not refused: images are prepared in one way
    "image_mean": OneOf(([0.5, 0.5, 0.5],)),
    "image_std": OneOf(([0.5, 0.5, 0.5],)),
    "min_size": OneOf((14,)),
    "do_normalize": OneOf((True,)),
    "background_color": OneOf(([127, 127, 127],)),
}


class Config:
    """A section of config.json whose fields have been checked.

    Raises:
        CheckpointError: the section is not an object, or a field has another type, is out of range or unsupported.
    """

    def __init__(self, values, fields: dict, name: str = "config.json"):
        if values is not None and not isinstance(values, dict):
            raise CheckpointError(f"config.json: {name} must be an object, but is {shown(values)}.")
        self.values, self.name = values or {}, name
        where = name if name == "config.json" else f"config.json: {name}"
        check_fields(self.values, fields, where, CheckpointError)

    def section(self, fields: dict, *keys: str) -> "Config":
        """A nested section, empty if missing."""
        section = self
        for key in keys[:-1]:
            section = Config(section.values.get(key), {}, key)
        return Config(section.values.get(keys[-1]), fields, ".".join(keys))

    def get(self, key: str, default=None):
        """The value under `key`, the default if it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def check(self, **found):
        """Raises CheckpointError if a field has another value than the weights."""
        for key, value in found.items():
            if self.get(key, value) != value:
                raise CheckpointError(
                    f"the weights do not fit config.json: {key} in {self.name} is {shown(self.values[key])}, but the "
                    f"weights have {value}."
                )
