"""Free memory: of this machine, of the container that the server runs in, or of a GPU."""

from __future__ import annotations

from recon import nufft
from recon.cgroups import memory_of_groups

SHARE = 0.5  # of what is free that one reconstruction takes by itself; the rest is for other sessions and programs
GPU_SHARE = 0.8


class ShortageError(RuntimeError):
    """A reconstruction does not fit into the memory.

    Parameters
    ----------
    what
        What does not fit.
    needed, there
        Memory that it takes, and that there is [bytes].
    """

    def __init__(self, what: str, needed: int, there: int) -> None:
        super().__init__(what, needed, there)  # by which it is pickled, on its way from another process
        self._text = (
            f"{what} need about {needed / 2**30:.1f} GiB of memory, and {there / 2**30:.1f} GiB are there: choose "
            "fewer frames at once (num_chunks = 0 does it by itself) or bins, or a smaller fov_oversampling"
        )

    def __str__(self) -> str:
        return self._text


def usable(gpu_device: int = -1) -> int:
    """Part of the free memory that one reconstruction may take without asking [bytes]; as `free` otherwise."""
    return int((SHARE if gpu_device < 0 else GPU_SHARE) * free(gpu_device))


def free(gpu_device: int = -1) -> int:
    """Memory that is free [bytes].

    Parameters
    ----------
    gpu_device
        -1 for the CPU, else the number of the GPU.

    Raises
    ------
    nufft.GpuUnavailableError
        The GPU, or CuPy to ask it, is not there.
    """
    if gpu_device >= 0:
        xp = nufft.open_backend(gpu_device).xp
        with xp.cuda.Device(gpu_device):
            available, _ = xp.cuda.runtime.memGetInfo()
            return available + xp.get_default_memory_pool().free_bytes()  # CuPy keeps that for its next allocation
    import psutil

    return min([psutil.virtual_memory().available, *(max(limit - used, 0) for limit, used in memory_of_groups())])
