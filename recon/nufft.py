"""Non-uniform Fourier transforms in two dimensions, arm by arm.

Conventions, used by everything here:

- Signal: ``s(k) = sum over pixels of image(r) exp(-2 pi i k.r)``. The adjoint has the other sign and no scale factor.
- Coordinates are k in cycles per field of view, (kx, ky) in the last axis: k [1/m] times the field of view [m] of
  that axis. Their magnitude matters (the edge of k-space is n/2 cycles), so nothing is rescaled to its maximum.
- Images are [coil, y, x]. Pixel (row, col) of an ny x nx image shows the object at x = -(col - nx//2) pixels and
  y = -(row - ny//2) pixels, the scanner's convention, for even and odd sizes alike. Turning the sign of the exponent
  does that exactly; flipping an even axis would move the object by one pixel.
- Grids are [y, x, coil] on an oversampled Cartesian raster: all coils of one grid point lie side by side, which is
  about three times as fast as one grid per coil.

Gridding is linear. `ArmPlan` holds the interpolation tables of every arm of a trajectory; `ArmPlan.add_arm` adds one
arm's samples to a grid when it arrives; `ArmPlan.image` turns a grid into images with one Fourier transform per coil.
`adjoint` and `forward` are one-call transforms. `slidingwindow.SlidingWindow` keeps the grids of a moving window.

Method: convolution with a Kaiser-Bessel kernel on an oversampled grid (Jackson 1991, doi 10.1109/42.97598;
with little oversampling: Beatty 2005, doi 10.1109/TMI.2005.848376), the checkerboard that centres the image folded
into the tables, and a transform that leaves out the columns that are cropped anyway.

How the choices were made: ``python benchmarks/nufft_backends.py`` (``doc/benchmarks.md``). Oversampling 1.5 with width
6 is as fast as larger grids with narrower kernels, at an error of 5e-5. Sparse matrices in place of the separate tables
come close in speed, but take 288 bytes a sample where the tables take 104; each slice has its own set.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# (oversampling, kernel width) by precision: errors of 5e-5 and below 1e-9 against direct sums.
ACCURACY = {np.dtype(np.complex64): (1.5, 6), np.dtype(np.complex128): (2.0, 12)}


class GpuUnavailableError(ValueError):
    """A GPU was asked for, and there is none, or no CuPy to reach it with."""


def compiled(loop: Callable) -> Callable:
    """Compile a loop for the CPU, or load it from the cache; it releases the interpreter lock."""
    import numba

    try:
        return numba.njit(nogil=True, fastmath=True, cache=True)(loop)
    except RuntimeError:  # no folder that the cache could be written to
        logger.info("no writable cache for compiled code: %s is compiled anew in this process", loop.__name__)
        return numba.njit(nogil=True, fastmath=True)(loop)


@functools.lru_cache(maxsize=1)
def _compiled_loops() -> tuple[Callable, Callable]:
    """Compiled loops that spread and interpolate."""
    # Unsigned indices: for signed ones each access would ask whether it counts from the end, and nothing is vectorised.
    index = np.uint64

    def spread(grid: NDArray[Any], first: NDArray[np.int32], taps: NDArray[Any], data: NDArray[Any]) -> None:
        ny, nx, values = grid.shape
        width = taps.shape[2]
        flat = grid.reshape(grid.size)
        row = np.empty(width * values, grid.dtype)
        for s in range(first.shape[0]):
            for i in range(width):
                for c in range(values):
                    row[index(i * values + c)] = taps[s, 0, i] * data[s, c]
            x = first[s, 0]
            before_edge = index(min(width, nx - x) * values)
            for j in range(width):
                y = (first[s, 1] + j) % ny
                weight = taps[s, 1, j]
                start = index((y * nx + x) * values)
                for n in range(before_edge):
                    flat[start + n] += weight * row[n]
                start = index(y * nx * values)
                for n in range(before_edge, index(width * values)):
                    flat[start + n - before_edge] += weight * row[n]

    def interpolate(grid: NDArray[Any], first: NDArray[np.int32], taps: NDArray[Any], data: NDArray[Any]) -> None:
        ny, nx, values = grid.shape
        width = taps.shape[2]
        flat = grid.reshape(grid.size)
        row = np.empty(width * values, grid.dtype)
        for s in range(first.shape[0]):
            row[:] = 0
            x = first[s, 0]
            before_edge = index(min(width, nx - x) * values)
            for j in range(width):
                y = (first[s, 1] + j) % ny
                weight = taps[s, 1, j]
                start = index((y * nx + x) * values)
                for n in range(before_edge):
                    row[n] += weight * flat[start + n]
                start = index(y * nx * values)
                for n in range(before_edge, index(width * values)):
                    row[n] += weight * flat[start + n - before_edge]
            for i in range(width):
                for c in range(values):
                    data[s, c] += taps[s, 0, i] * row[index(i * values + c)]

    return compiled(spread), compiled(interpolate)


class ArrayBackend:
    """Whole-array operations: CuPy on GPU `gpu_device`; NumPy, slowly, when no device is given."""

    def __init__(self, gpu_device: int | None = None) -> None:
        self._gpu_device = gpu_device
        self.xp = np if gpu_device is None else _open_gpu(gpu_device)
        self.fft = self.xp.fft

    def device(self) -> contextlib.AbstractContextManager:
        """Return a context in which the GPU is the current one of this thread."""
        return contextlib.nullcontext() if self._gpu_device is None else self.xp.cuda.Device(self._gpu_device)

    def prepare(self, real: np.dtype) -> None:
        """Do what the first call for arrays of this type would have to wait for."""

    def spread(self, grid: Any, first: Any, taps: Any, data: Any) -> None:
        """Add data [samples, 2 coils] to grid [y, x, 2 coils]; first is [samples, 2], taps [samples, 2, width]."""
        index, weight = self._points(grid, first, taps)
        values = weight[:, :, None] * data[:, None, :]
        self.xp.add.at(grid.reshape(-1, grid.shape[2]), index.ravel(), values.reshape(-1, grid.shape[2]))

    def interpolate(self, grid: Any, first: Any, taps: Any, data: Any) -> None:
        """Add the grid's values at the samples to data: the transpose of `spread`, same shapes."""
        index, weight = self._points(grid, first, taps)
        data += (weight[:, :, None] * grid.reshape(-1, grid.shape[2])[index]).sum(axis=1)

    def _points(self, grid: Any, first: Any, taps: Any) -> tuple[Any, Any]:
        """Return indices into the flattened grid and weights, both [samples, width * width]."""
        ny, nx, _ = grid.shape
        offsets = self.xp.arange(taps.shape[2])
        x = (first[:, :1] + offsets) % nx
        y = (first[:, 1:] + offsets) % ny
        index = y[:, :, None] * nx + x[:, None, :]
        weight = taps[:, 1, :, None] * taps[:, 0, None, :]
        return index.reshape(len(first), -1), weight.reshape(len(first), -1)


class CpuBackend(ArrayBackend):
    """NumPy, SciPy's Fourier transform and compiled loops in place of whole-array operations; one thread."""

    def __init__(self) -> None:
        import scipy.fft

        super().__init__()
        self.fft = scipy.fft
        self._spread, self._interpolate = _compiled_loops()

    def prepare(self, real: np.dtype) -> None:
        """Compile the loops for this type, or load them."""
        grid, first, taps = np.zeros((1, 1, 2), real), np.zeros((0, 2), np.int32), np.zeros((0, 2, 1), real)
        for loop in (self._spread, self._interpolate):
            loop(grid, first, taps, np.zeros((0, 2), real))

    def spread(self, grid: Any, first: Any, taps: Any, data: Any) -> None:
        """Add data to grid, as `ArrayBackend.spread`."""
        self._spread(grid, first, taps, data)

    def interpolate(self, grid: Any, first: Any, taps: Any, data: Any) -> None:
        """Add the grid's values to data, as `ArrayBackend.interpolate`."""
        self._interpolate(grid, first, taps, data)


def _open_gpu(gpu_device: int) -> Any:
    """Return CuPy if the GPU with this number answers."""
    hint = "set gpu_device = -1 for the CPU"
    try:
        import cupy
    except ImportError as error:
        raise GpuUnavailableError(f"gpu_device = {gpu_device} needs CuPy, which is not installed; {hint}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise GpuUnavailableError(f"gpu_device = {gpu_device}, but CUDA finds no GPU ({error}); {hint}") from error
    if gpu_device >= count:
        raise GpuUnavailableError(f"gpu_device = {gpu_device}, but the GPUs are numbered 0 to {count - 1}; {hint}")
    return cupy


def open_backend(gpu_device: int = -1) -> ArrayBackend:
    """Return the backend for a device: -1 is the CPU, 0 and up are GPUs.

    Raises
    ------
    GpuUnavailableError
        The GPU, or CuPy, is not there.
    """
    if gpu_device < -1:
        raise GpuUnavailableError(f"gpu_device = {gpu_device} is no device; set gpu_device = -1 for the CPU")
    return CpuBackend() if gpu_device == -1 else ArrayBackend(gpu_device)


def warm_up() -> None:
    """Compile the CPU loops (seconds on the very first start, else tenths), so that no scan has to wait for it."""
    forward(np.zeros((1, 2)), adjoint(np.zeros((1, 2)), np.ones((1, 1), np.complex64), (2, 2)))


class ArmPlan:
    """Interpolation tables for every arm of a trajectory, and the transforms that use them.

    Parameters
    ----------
    coords
        k [arms, samples, (kx, ky)] in cycles per field of view, see the module's conventions.
    shape
        Image size (ny, nx).
    weights
        Density compensation [samples] or [arms, samples] for the adjoint; None is 1. The forward transform has none.
    dtype
        complex64 (error 5e-5) or complex128 (error below 1e-9).
    gpu_device
        -1 for the CPU, else the number of the GPU; results then are CuPy arrays (see `to_host`).
    oversampling, width
        Grid size relative to the image and kernel width [grid points], instead of those that `ACCURACY` has.
    backend
        Used instead of the one for gpu_device.

    Raises
    ------
    ValueError
        Shapes that do not fit, coordinates or weights that are not finite.
    GpuUnavailableError
        The GPU is not there.

    Notes
    -----
    A plan does not change: several threads may use it at once, each with its own grid.
    """

    def __init__(
        self,
        coords: np.ndarray,
        shape: tuple[int, int],
        weights: np.ndarray | None = None,
        *,
        dtype: Any = np.complex64,
        gpu_device: int = -1,
        oversampling: float | None = None,
        width: int | None = None,
        backend: ArrayBackend | None = None,
    ) -> None:
        coords = np.asarray(coords, dtype=np.float64)
        if coords.ndim != 3 or coords.shape[2] != 2:
            raise ValueError(f"coords is {coords.shape}, expected (arms, samples, 2)")
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"image shape is {tuple(shape)}, expected (ny, nx)")
        weights = np.broadcast_to(1.0 if weights is None else np.asarray(weights, np.float64), coords.shape[:2])
        if not (np.isfinite(coords).all() and np.isfinite(weights).all()):
            raise ValueError("coordinates and density weights must be finite numbers")
        self.dtype = np.dtype(dtype)
        if self.dtype not in ACCURACY:
            raise ValueError(f"dtype is {self.dtype}, expected complex64 or complex128")
        self.shape = (int(shape[0]), int(shape[1]))
        self.arms, self.samples = coords.shape[:2]
        default_oversampling, default_width = ACCURACY[self.dtype]
        oversampling, width = oversampling or default_oversampling, width or default_width
        self.grid_shape = tuple(_grid_size(n, oversampling, width) for n in self.shape)
        self._real = self.dtype.type(0).real.dtype
        self._backend = backend or open_backend(gpu_device)
        xp = self._backend.xp

        tables = [
            _axis_table(coords[..., axis], self.shape[1 - axis], self.grid_shape[1 - axis], width) for axis in (0, 1)
        ]
        taps = np.stack([table for _, table in tables], axis=2)
        weighted = taps.copy()
        weighted[:, :, 1] *= weights[..., None]
        correction = [1 / _kernel_transform(n, m, width) for n, m in zip(self.shape, self.grid_shape, strict=True)]
        with self.device():
            self._first = xp.asarray(np.stack([first for first, _ in tables], axis=2))
            self._taps = xp.asarray(taps.astype(self._real))
            self._weighted = xp.asarray(weighted.astype(self._real))
            self._correction = xp.asarray(np.multiply.outer(*correction).astype(self._real))
        self._backend.prepare(self._real)

    def device(self) -> contextlib.AbstractContextManager:
        """Return the context in which arrays of this plan are worked on; for the CPU it does nothing."""
        return self._backend.device()

    def grid_bytes(self, coils: int) -> int:
        """Memory of one grid [bytes]."""
        return math.prod(self.grid_shape) * coils * self.dtype.itemsize

    def zeros(self, coils: int) -> Any:
        """Return an empty grid [y, x, coil] for `add_arm`."""
        with self.device():
            return self._backend.xp.zeros((*self.grid_shape, coils), self.dtype)

    def add_arm(self, grid: Any, arm: int, data: Any) -> None:
        """Add one arm's density-weighted samples, data [coil, samples], to a grid of `zeros`.

        Raises
        ------
        ValueError
            There is no such arm, or data or grid have another shape than the plan's.
        """
        self._check(grid, arm, data)
        xp = self._backend.xp
        with self.device():
            samples = xp.ascontiguousarray(xp.asarray(data, self.dtype).T).view(self._real)
            self._backend.spread(grid.view(self._real), self._first[arm], self._weighted[arm], samples)

    def _check(self, grid: Any, arm: int, data: Any) -> None:
        """Refuse what does not fit: the compiled loops check nothing."""
        if not 0 <= arm < self.arms:
            raise ValueError(f"arm {arm} is not in the trajectory, which has arms 0 to {self.arms - 1}")
        if grid.shape[:2] != self.grid_shape or grid.dtype != self.dtype or not grid.flags.c_contiguous:
            raise ValueError(f"grid is {grid.dtype} {grid.shape}, expected one made by zeros(): {self.grid_shape}")
        if data.shape != (grid.shape[2], self.samples):
            raise ValueError(f"data is {data.shape}, expected (coils, samples) = ({grid.shape[2]}, {self.samples})")

    def image(self, grid: Any) -> Any:
        """Return the images [coil, y, x] of a grid; the grid stays as it is."""
        xp, fft = self._backend.xp, self._backend.fft
        (row, ny), (col, nx) = (_centre(n, m) for n, m in zip(self.shape, self.grid_shape, strict=True))
        with self.device():
            half = xp.ascontiguousarray(xp.moveaxis(fft.fft(grid, axis=1)[:, col:nx], 2, 0))
            return fft.fft(half, axis=1)[:, row:ny] * self._correction

    def adjoint(self, data: Any) -> Any:
        """Return the images [coil, y, x] of density-weighted samples, data [coil, arms, samples]."""
        grid = self.zeros(data.shape[0])
        for arm in range(self.arms):
            self.add_arm(grid, arm, data[:, arm])
        return self.image(grid)

    def forward(self, image: Any, arms: Sequence[int] | None = None) -> Any:
        """Return samples [coil, arms, samples] of images [coil, y, x], without density weights; arms None means all.

        Raises
        ------
        ValueError
            The images have another size than the plan.
        """
        if image.ndim != 3 or image.shape[1:] != self.shape:
            raise ValueError(f"image is {image.shape}, expected (coils, ny, nx) = (coils, {self.shape})")
        xp, fft, coils = self._backend.xp, self._backend.fft, image.shape[0]
        (row, ny), (col, nx) = (_centre(n, m) for n, m in zip(self.shape, self.grid_shape, strict=True))
        with self.device():
            half = xp.zeros((self.grid_shape[0], self.shape[1], coils), self.dtype)
            half[row:ny] = xp.moveaxis(xp.asarray(image, self.dtype) * self._correction, 0, 2)
            grid = self.zeros(coils)
            grid[:, col:nx] = fft.ifft(half, axis=0, norm="forward")
            grid = xp.ascontiguousarray(fft.ifft(grid, axis=1, norm="forward")).view(self._real)  # CuPy's are not
            arms = range(self.arms) if arms is None else arms
            data = xp.zeros((len(arms), self.samples, 2 * coils), self._real)
            for arm, samples in zip(arms, data, strict=True):
                self._backend.interpolate(grid, self._first[arm], self._taps[arm], samples)
            return xp.ascontiguousarray(xp.moveaxis(data.view(self.dtype), 2, 0))


def _grid_size(n: int, oversampling: float, width: int) -> int:
    """Return an even grid size that transforms fast; even, so that the centring factor is a sign."""
    from scipy.fft import next_fast_len

    return 2 * next_fast_len(max(int(np.ceil(oversampling * n / 2)), width))


def _centre(n: int, grid: int) -> tuple[int, int]:
    """Return where n image points around the centre of the grid start and end."""
    start = grid // 2 - n // 2
    return start, start + n


def _beta(ratio: float, width: int) -> float:
    """Return the Kaiser-Bessel shape for a grid that is ratio times the image, a touch below its aliasing limit."""
    return 0.98 * np.pi * width * (1 - 0.5 / ratio)


def _axis_table(k: np.ndarray, n: int, grid: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first grid point [...] that each k touches, and its kernel values [..., width] with centring signs."""
    from scipy.special import i0

    beta = _beta(grid / n, width)
    position = k * (grid / n)
    first = np.ceil(position - width / 2)
    points = first[..., None] + np.arange(width)
    distance = (points - position[..., None]) / (width / 2)
    values = i0(beta * np.sqrt(np.maximum(0, 1 - distance**2))) / i0(beta)
    return (first % grid).astype(np.int32), values * (1 - 2 * (points % 2))


def _kernel_transform(n: int, grid: int, width: int) -> np.ndarray:
    """Return the kernel's Fourier transform at the n pixels."""
    from scipy.special import i0

    beta = _beta(grid / n, width)
    argument = np.sqrt(beta**2 - (np.pi * width * (np.arange(n) - n // 2) / grid) ** 2)
    return width * np.sinh(argument) / (argument * i0(beta))


def adjoint(
    coords: np.ndarray, data: Any, shape: tuple[int, int], weights: np.ndarray | None = None, gpu_device: int = -1
) -> Any:
    """Return the adjoint transform in one call; complex128 data is transformed in double precision.

    Parameters
    ----------
    coords
        k [..., (kx, ky)] in cycles per field of view.
    data
        Samples [coil, ...], the same axes as coords has before its last.
    shape
        Image size (ny, nx).
    weights
        Density compensation, as coords without its last axis, or None.
    gpu_device
        -1 for the CPU.

    Returns
    -------
    Images [coil, y, x].
    """
    if data.shape[1:] != np.shape(coords)[:-1]:
        raise ValueError(f"data is {data.shape}, coords {np.shape(coords)}: expected (coils, ...) and (..., 2)")
    weights = None if weights is None else np.broadcast_to(weights, data.shape[1:]).reshape(1, -1)
    dtype = np.result_type(data.dtype, np.complex64)
    plan = ArmPlan(np.reshape(coords, (1, -1, 2)), shape, weights, dtype=dtype, gpu_device=gpu_device)
    return plan.adjoint(data.reshape(data.shape[0], 1, -1))


def forward(coords: np.ndarray, image: Any, gpu_device: int = -1) -> Any:
    """Return samples [coil, ...] at coords [..., (kx, ky)] of images [coil, y, x]; precision as in `adjoint`."""
    dtype = np.result_type(image.dtype, np.complex64)
    plan = ArmPlan(np.reshape(coords, (1, -1, 2)), image.shape[-2:], dtype=dtype, gpu_device=gpu_device)
    return plan.forward(image).reshape(image.shape[0], *np.shape(coords)[:-1])
