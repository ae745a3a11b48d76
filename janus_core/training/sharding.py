"""Weights and optimizer states as a whole, of modules that are in one piece and of those that FSDP has sharded."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed.checkpoint import state_dict as distributed


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP has sharded a module's parameters (they are DTensors)."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def loads_weights() -> bool:
    """Whether this process's weights count; with FSDP's cpu_ram_efficient_loading the main process sends its own."""
    flags = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    return PartialState().is_main_process or not all(parse_flag_from_env(flag) for flag in flags)


def full_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole tensors, sharded ones gathered on the CPU of the main process; every process must call it.

    The other processes get the whole tensors of what is not sharded, and nothing else.
    """
    whole = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if hasattr(tensor, "full_tensor"):
            tensor = tensor.full_tensor()
            if not PartialState().is_main_process:
                continue
            tensor = tensor.cpu()
        whole[name] = tensor
    return whole


@torch.no_grad()
def load_full_tensors(targets: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]):
    """Copies whole tensors into tensors that may be sharded."""
    for name, target in targets.items():
        source = tensors[name]
        if hasattr(target, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
        target.copy_(source)


def full_optimizer_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """The state of an optimizer over a module's parameters, as a whole; every process must call it."""
    if not is_sharded(module):
        return optimizer.state_dict()
    options = distributed.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return distributed.get_optimizer_state_dict(module, optimizer, options=options)


def load_full_optimizer_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict):
    """Loads what full_optimizer_state returned."""
    if not is_sharded(module):
        return optimizer.load_state_dict(state)
    options = distributed.StateDictOptions(full_state_dict=True)
    distributed.set_optimizer_state_dict(module, optimizer, state, options=options)


def full_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a module, frozen ones too; every process must call it."""
    return full_tensors(module.state_dict())
