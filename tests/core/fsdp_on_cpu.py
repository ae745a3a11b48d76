"""Fine-tunes with accelerate's FSDP on CPUs, which accelerate offers for GPUs only: one process of several.

torchrun --nproc_per_node 2 tests/core/fsdp_on_cpu.py CONFIG FSDP_CONFIG.yaml
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml
from accelerate import DistributedType, PartialState

from janus_core import training


def main(config: str, fsdp_config: str):
    fsdp = yaml.safe_load(Path(fsdp_config).read_text())["fsdp_config"]
    names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}  # the only one that differs
    os.environ |= {names.get(name, name.upper()): str(value) for name, value in fsdp.items()}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "true"}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # with gloo and the CPU as device
    print(training.run(config))


main(*sys.argv[1:])
