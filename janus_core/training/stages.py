"""The three training stages and the weights that each freezes (JanusFlow, section 3.4; Janus, section 3.4).

    1: adaptation: only the layers between the pretrained language model or understanding encoder and images;
    2: unified pre-training: everything but the understanding encoder;
    3: supervised fine-tuning: everything.

The VQ tokenizer and the VAE are separate models, frozen throughout.
"""

from ..errors import TrainingError
from ..schema import shown

ENCODERS = {"janus": "vision_model.", "janusflow": "vision_und_enc_model."}
LANGUAGE_MODEL = "language_model."

# Rows of understanding, generation and text alone in a batch (JanusFlow, table 1).
RATIOS = {1: (50, 50, 0), 2: (14, 80, 6), 3: (21, 70, 9)}


def is_trained(name: str, family: str, stage: int) -> bool:
    """Whether a stage trains the parameter with this name of a Janus or JanusFlow model."""
    if stage == 1:
        return not name.startswith((LANGUAGE_MODEL, ENCODERS[family]))
    if stage == 2:
        return not name.startswith(ENCODERS[family])
    return True


def freeze(model, stage: int):
    """Sets requires_grad of every parameter of a Janus or JanusFlow model; TrainingError unless the stage is 1 to 3."""
    if stage not in RATIOS:
        raise TrainingError(f"Stages are 1, 2 and 3, not {shown(stage)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, model.family, stage))
