"""Several processes that learn together: how many there are, which one this is, and means over all of them."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_PEER = re.compile(r"gloo|NCCL|by peer|Broken pipe|TCPStore", re.IGNORECASE)


class PeerLostError(RuntimeError):
    """An error of a process that can't go on, as another one that it learned with has ended.

    >>> issubclass(PeerLostError, RuntimeError)
    True
    """


def together() -> bool:
    """Whether this process is one of a group that learns together (torch.distributed is initialized)."""
    return distributed.is_available() and distributed.is_initialized()


def world() -> int:
    """The number of processes that learn together."""
    return distributed.get_world_size() if together() else 1


def started() -> int:
    """The number of processes that torchrun has started together, whether they have met yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among those that learn together, from 0."""
    return distributed.get_rank() if together() else 0


def meet() -> None:
    """Let the processes that torchrun has started know each other, each with a GPU of its own where there are enough.

    They do so until they end: whoever asks for it a second time might meet one that is still taking leave.
    """
    if together() or started() == 1:
        return
    here, number = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(number % gpus)
    distributed.init_process_group("nccl" if gpus >= here else "gloo")
    atexit.register(_part)


def _part() -> None:
    if together():
        distributed.destroy_process_group()


def as_first_has(text: str) -> str:
    """What the first of all processes gives here, on every one."""
    told = [text]
    if world() > 1:
        distributed.broadcast_object_list(told)
    return told[0]


def wait_for_all() -> None:
    """Return once all processes that learn together have come here."""
    if world() > 1:
        distributed.barrier()


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in its place."""
    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes, with one message for each dtype."""
    tensors = list(tensors)
    if (n := world()) == 1:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in group])
        distributed.all_reduce(flat)
        flat /= n
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def everywhere(value: bool, device: torch.device) -> bool:
    """Whether `value` is true on all processes."""
    if world() == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)


def check_alone(what: str, way_out: str) -> None:
    """Refuse several processes, on each of them, for what only one may do.

    Raises:
        ValueError: if this process is one of several, by torch.distributed or as torchrun has started it.
    """
    count = max(world(), started())
    if count > 1:
        raise ValueError(f"{what} works in one process, and {count} were started together; {way_out}")


def in_shards(tensor: object) -> bool:
    """Whether a tensor lies in shards on several processes, as those of `fully_shard` do."""
    return hasattr(tensor, "device_mesh")


def parts_in_shards(model: nn.Module) -> list[str]:
    """Names of the modules within `model` that fully_shard was called on."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # Imported by whoever has sharded.
    if fsdp is None:
        return []
    return [name for name, module in model.named_modules() if name and isinstance(module, fsdp.FSDPModule)]


def refuse_shards(model: nn.Module) -> None:
    """Raise a ValueError if parameters of a model that is to be attached lie in shards."""
    found = [name for name, parameter in model.named_parameters() if in_shards(parameter)]
    if found:
        raise ValueError(
            f"parameters of the model lie in shards already ({', '.join(found[:3])}{', ...' if found[3:] else ''}); call "
            "apical.attach first and fully_shard after it, which then shards feedback that learns with the weights as well"
        )


def refuse_wrapped(model: nn.Module, rule: str) -> None:
    """Raise a ValueError if a wrapper holds the model that would not average gradients of parameters that are to come."""
    if together() and _wrapped(model):
        gc.collect()  # One that is let go of may still be there.
        if _wrapped(model):
            raise ValueError(
                f"rule '{rule}' adds parameters, feedback that learns, and this model lies in a DistributedDataParallel made "
                "before, which would not average their gradients; call apical.attach on the plain model, and wrap it after that"
            )


def _wrapped(model: nn.Module) -> bool:
    kinds: list[type] = [DistributedDataParallel]
    for kind in kinds:
        kinds += kind.__subclasses__()
    # What holds a class: its objects, of which PyTorch keeps no list, and a few others.
    wrappers = [one for one in gc.get_referrers(*kinds) if issubclass(type(one), DistributedDataParallel)]
    return any(one in model.modules() or model in one.modules() for one in wrappers)


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that a connection to another process broke off."""
    return isinstance(error, distributed.DistError) or bool(_PEER.search(str(error)))


@contextmanager
def peers_told() -> Iterator[None]:
    """What PyTorch says of a connection that broke off, as an error that says why, and how to go on.

    Raises:
        PeerLostError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not lost_peer(error):
            raise
        raise PeerLostError(
            f"process {rank()} of {world()} stops, as another one has ended or can't be reached ({str(error).splitlines()[0]}); "
            "that one's own output says why. The last checkpoint is whole: once the cause is mended, start all processes again "
            "with --resume and the run's folder"
        ) from error
