"""Which implementation of the sparse kernels runs: plain torch, or a compiled one.

    torch     the reference, everywhere
    numba     loops compiled for this CPU, where the package numba is installed
    triton    the same products for NVIDIA and AMD GPUs, where the package triton is installed

The choice is made by device and by what is installed. `SAELAB_KERNELS=torch` in the environment or
`use_backend("torch")` in a program overrides it. A compiled kernel that does not apply (another
dtype, work too small to be worth it, a compiler that fails) is replaced by the reference without a
word; `saelab doctor` shows what is in use. Results of two backends differ in the last bits, so a
run records which one it used.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from saelab.errors import ConfigError

__all__ = ["BACKENDS", "ENVIRONMENT", "backend_name", "compiled", "describe", "use_backend"]

BACKENDS = ("torch", "numba", "triton")
"""Every name that can be asked for."""
ENVIRONMENT = "SAELAB_KERNELS"
"""The environment variable that overrides the choice."""
WORTH_IT = 1 << 21
"""Below this many multiplications or comparisons the reference is used: loading the compiler takes
a second, more than hundreds of such calls could save. A name that was asked for is used at every
size."""

_HOME = {"numba": "cpu", "triton": "cuda"}
_asked: list[str] = []
_failed: dict[str, str] = {}


def backend_name(device: torch.device | str = "cpu") -> str:
    """The backend in use on a device, for the record of a run.

    Raises:
        ConfigError: SAELAB_KERNELS names no backend.

    >>> with use_backend("torch"):
    ...     backend_name("cpu")
    'torch'
    """
    kind = torch.device(device).type
    asked = _asked_for()
    candidates = [asked] if asked else ["numba", "triton"]
    for name in candidates:
        if _HOME.get(name) == kind and name not in _failed and _installed(name):
            return name
    if asked == "triton" and _interpreted() and "triton" not in _failed:
        return "triton"  # on CPU tensors, one element after the other: for tests
    return "torch"


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend, at every size, inside the block; devices it does not serve use torch.

    Args:
        name: "torch", "numba" or "triton".

    Raises:
        ConfigError: There is no backend of that name.
    """
    _check(name, "use_backend")
    _asked.append(name)
    try:
        yield
    finally:
        _asked.pop()


def describe() -> str:
    """One line about the CPU and GPU kernels, for people."""
    parts = [f"{backend_name('cpu')} on CPU"]
    if torch.cuda.is_available():
        parts.append(f"{backend_name('cuda')} on GPU")
    asked = _asked_for()
    if asked:
        parts.append(f"asked for {asked!r}")
    parts += [f"{name} failed: {why}" for name, why in _failed.items()]
    if "numba" not in _failed and not _installed("numba"):
        parts.append("faster CPU kernels: pip install numba")
    return "; ".join(parts) + "."


def compiled(kernel: str, work: int, *tensors: Tensor) -> Callable[..., object] | None:
    """The compiled kernel to use for these tensors, or None for the reference.

    Args:
        kernel: Its name in `saelab.kernels.numba_backend` and `saelab.kernels.triton_backend`.
        work: About how many multiplications or comparisons it takes.
        tensors: Its floating-point inputs.
    """
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return None
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return None  # only the reference is differentiable by itself
    if work < WORTH_IT and not _asked_for():
        return None
    name = backend_name(tensors[0].device)
    if name == "torch":
        return None
    try:
        return _kernel(name, kernel)
    except Exception as error:  # a compiler can fail in any way; the reference always works
        _failed[name] = f"{type(error).__name__}: {error}"
        return None


def _kernel(name: str, kernel: str) -> Callable[..., object] | None:
    if name == "numba":
        from saelab.kernels import numba_backend as backend
    else:
        from saelab.kernels import triton_backend as backend
    function = getattr(backend, kernel, None)
    if function is not None:
        backend.prepare(kernel)
    return function


def _asked_for() -> str | None:
    if _asked:
        return _asked[-1]
    name = os.environ.get(ENVIRONMENT)
    return _check(name, ENVIRONMENT) if name else None


def _check(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise ConfigError(f"{where} asks for kernels {name!r}; there are {', '.join(BACKENDS)}.")
    return name


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and _installed("triton")
