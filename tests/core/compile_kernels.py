"""Cross-compiles the kernels of a decode step without a GPU: python tests/core/compile_kernels.py 80:bf16 90:int8,fp8.

Prints JSON: names and shared memory (bytes) of the kernels, for each compute capability, row count and weight dtype.
"""

import json
import sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from janus_core.networks.cache import KVCache
from janus_core.networks.llama import Llama, LlamaParams
from janus_core.triton_decoder.decoder import TritonDecoder

WEIGHTS = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
PARAMS = LlamaParams(
    vocab_size=8, hidden_size=2048, intermediate_size=5632, layers=1, heads=16, kv_heads=16, head_dim=128
)


def decoder(rows: int, weights: torch.dtype) -> TritonDecoder:
    """A decoder of one block with the dimensions of Janus-Pro-1B."""
    llama = Llama(PARAMS, dtype=torch.bfloat16)
    for layer in llama.layers.modules():
        if isinstance(layer, torch.nn.Linear) and weights != torch.bfloat16:
            layer.weight = torch.nn.Parameter(layer.weight.detach().to(weights), requires_grad=False)
            layer.scale = torch.ones(len(layer.weight))
    cache = KVCache(PARAMS, rows, 596, torch.bfloat16, "cpu")
    cache.keys, cache.values = cache.keys.bfloat16(), cache.values.bfloat16()
    starts = torch.zeros(rows, dtype=torch.long)
    return TritonDecoder(llama, cache, starts, starts)


@torch.inference_mode()
def main():
    launch, compiled = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **options):
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel.metadata.shared))

    JITFunction.run = compile_only
    report = []
    for rows in (1, 2, 32):
        for name, weights in WEIGHTS.items():
            step = decoder(rows, weights)
            for capability, formats in (target.split(":") for target in sys.argv[1:]):
                if name not in formats.split(","):
                    continue
                capability = int(capability)
                target = GPUTarget("cuda", capability, 32)
                driver.set_active(
                    SimpleNamespace(
                        get_current_device=lambda device=capability: device,
                        get_current_stream=lambda device: 0,
                        get_current_target=lambda target=target: target,
                    )
                )
                compiled.clear()
                step(torch.zeros(rows, PARAMS.hidden_size, dtype=torch.bfloat16), torch.tensor([100]))
                report.append({"capability": capability, "rows": rows, "weights": name, "kernels": list(compiled)})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
