"""The sparse linear algebra that training and encoding share.

One idea runs through it: choosing which (token, latent) pairs matter needs every pre-activation,
but nothing after that does. So the encoder runs in row chunks into one reused buffer
(`encoding`), a selection keeps the pairs (`selection`), and everything later, forward and
backward, works on those pairs alone (`pairs`, `functions`). Gradients are exact: pairs that were
not selected have none.

Each function has a plain dense counterpart in `tests/test_kernels.py` that it is compared with. The
heavy ones exist twice: in plain torch, and compiled (`backends` says which runs).
"""

from saelab.kernels.backends import backend_name, use_backend
from saelab.kernels.encoding import encode_pairs
from saelab.kernels.functions import (
    GradientBuffers,
    sparse_decode,
    sparse_pre_activations,
    squared_error,
)
from saelab.kernels.pairs import Pairs, pair_products, sum_rows
from saelab.kernels.rescoring import Bfloat16Selection
from saelab.kernels.selection import above, entries, top_k, top_k_pairs

__all__ = [
    "Bfloat16Selection",
    "GradientBuffers",
    "Pairs",
    "above",
    "backend_name",
    "encode_pairs",
    "entries",
    "pair_products",
    "sparse_decode",
    "sparse_pre_activations",
    "squared_error",
    "sum_rows",
    "top_k",
    "top_k_pairs",
    "use_backend",
]
