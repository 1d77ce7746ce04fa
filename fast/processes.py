"""Several processes that train together, each on its share of a step's problems."""

import torch.distributed as dist
from torch import Tensor


def process() -> tuple[int, int]:
    """This process's number and the number of processes: (0, 1) for one that trains alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def averaged(values: Tensor) -> Tensor:
    """In place, the mean over all processes. With gloo, as on CPUs, raises ConnectionError where
    one of them is gone."""
    _, processes = process()
    if processes > 1:
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            if dist.get_backend() != "gloo":  # the error may be any kernel's
                raise
            raise ConnectionError(f"another process is gone ({error})") from None
        values /= processes
    return values
