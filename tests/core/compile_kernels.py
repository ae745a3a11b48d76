"""Compiles what a decode step launches for GPUs that need not be there: python tests/core/compile_kernels.py 80 90.

Prints JSON: for each capability, number of rows, and weights, the kernels' names and bytes of shared memory.
"""

import json
import sys
from types import SimpleNamespace

import torch
from janus_core.fused.decoder import TritonDecoder
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from janus_core.networks.llama import KVCache, Llama, LlamaParams

WEIGHTS = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
PARAMS = LlamaParams(
    vocab_size=8, hidden_size=2048, intermediate_size=5632, layers=1, heads=16, kv_heads=16, head_dim=128
)


def decoder(rows: int, weights: torch.dtype) -> TritonDecoder:
    """Of one block at Janus-Pro-1B's size."""
    llama = Llama(PARAMS, dtype=torch.bfloat16)
    for layer in llama.layers.modules():
        if isinstance(layer, torch.nn.Linear) and weights != torch.bfloat16:
            layer.weight = torch.nn.Parameter(layer.weight.detach().to(weights), requires_grad=False)
            layer.scale = torch.ones(len(layer.weight))
    cache = KVCache(PARAMS, rows, 596, torch.bfloat16, "cpu")
    cache.keys, cache.values = cache.keys.bfloat16(), cache.values.bfloat16()
    return TritonDecoder(llama, cache, torch.zeros(rows, dtype=torch.long))


@torch.inference_mode()
def main():
    launch, made = JITFunction.run, []

    def only_compile(self, *args, grid, warmup, **options):
        made.append((self.__name__, launch(self, *args, grid=grid, warmup=True, **options).metadata.shared))

    JITFunction.run = only_compile
    report = []
    for rows in (1, 2, 32):
        for name, weights in WEIGHTS.items():
            step = decoder(rows, weights)
            for capability in map(int, sys.argv[1:]):
                if name == "fp8" and capability < 89:
                    continue
                target = GPUTarget("cuda", capability, 32)
                driver.set_active(
                    SimpleNamespace(
                        get_current_device=lambda device=capability: device,
                        get_current_stream=lambda device: 0,
                        get_current_target=lambda target=target: target,
                    )
                )
                made.clear()
                step(torch.zeros(rows, PARAMS.hidden_size, dtype=torch.bfloat16), torch.tensor([100]))
                report.append({"capability": capability, "rows": rows, "weights": name, "kernels": list(made)})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
