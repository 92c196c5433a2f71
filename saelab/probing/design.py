"""What does a probe read? A design: one row an example, one column a channel, neuron or latent.

Dense columns stay dense and sparse codes stay sparse: only the columns that are asked for become
a matrix. Scaling is by statistics of the training rows, which whoever fits keeps with the probe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saelab.errors import DataError, ShapeError
from saelab.sparse_codes import SparseCodes

__all__ = ["Design"]

Rows = NDArray[Any] | Sequence[int]
"""Row numbers."""


@final
@dataclass(frozen=True, eq=False)
class Design:
    """Examples by columns, dense or sparse.

    >>> design = Design.of(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    >>> design.columns([1]).tolist(), design.std().tolist()
    ([[2.0], [0.0]], [0.5, 1.0])
    """

    values: Any
    """numpy float64 [example, column], or a scipy csr_array of the same."""

    @classmethod
    def of(cls, values: "Design | Tensor | NDArray[Any] | SparseCodes") -> "Design":
        """Whatever holds examples, as a design; sparse codes are not made dense.

        Raises:
            ShapeError: It is no matrix.
            DataError: It is empty, or holds numbers that are not finite.
        """
        if isinstance(values, Design):
            return values
        if isinstance(values, SparseCodes):
            return cls(_compressed(values))
        if isinstance(values, Tensor):
            values = values.detach().cpu().to(torch.float64).numpy()
        values = np.asarray(values, np.float64)
        if values.ndim != 2:
            raise ShapeError(f"A probe reads [example, column]; found shape {values.shape}.")
        if values.size == 0 or not np.isfinite(values).all():
            raise DataError(
                f"A probe's input of shape {values.shape} is empty or holds NaN or infinite numbers"
                ". Look for the examples without a token that counts."
            )
        return cls(values)

    @property
    def n(self) -> int:
        """Examples."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.values.shape[1]

    @property
    def is_sparse(self) -> bool:
        """Whether only numbers that are not zero are held."""
        return not isinstance(self.values, np.ndarray)

    def rows(self, rows: Rows) -> "Design":
        """Some examples."""
        return Design(self.values[np.asarray(rows)])

    def columns(self, columns: Rows) -> NDArray[Any]:
        """Some columns as a dense matrix [example, chosen]."""
        chosen = self.values[:, np.asarray(columns, dtype=np.int64)]
        return chosen.toarray() if self.is_sparse else chosen

    def mean(self) -> NDArray[Any]:
        """Mean of each column."""
        return np.asarray(self.values.mean(axis=0)).ravel()

    def std(self) -> NDArray[Any]:
        """Standard deviation of each column; 1 where a column does not vary."""
        if self.is_sparse:
            # Of the values minus a typical one there is none: zeros make two passes exact enough.
            mean = self.mean()
            squared = self.values.multiply(self.values).mean(axis=0)
            variance = np.asarray(squared).ravel() - mean**2
            floor = 1e-12 * np.maximum(np.asarray(squared).ravel(), 1e-300)
        else:
            variance = self.values.var(axis=0)
            floor = 1e-12 * np.maximum((self.values**2).mean(axis=0), 1e-300)
        return np.where(variance > floor, np.sqrt(np.maximum(variance, 0)), 1.0)

    def varies(self) -> NDArray[Any]:
        """Which columns are not constant."""
        if self.is_sparse:
            most, least = self.values.max(axis=0), self.values.min(axis=0)
            return (most.toarray() != least.toarray()).ravel()
        return self.values.max(axis=0) != self.values.min(axis=0)

    def class_difference(self, positive: NDArray[Any]) -> NDArray[Any]:
        """Mean of the positives minus mean of the negatives, in each column."""
        positive = np.asarray(positive, bool)
        weight = np.where(positive, 1 / positive.sum(), -1 / (~positive).sum())
        return np.asarray(weight @ self.values).ravel()

    def scaled(self, std: NDArray[Any]) -> Any:
        """Values divided by `std`, as sparse as they were; a matrix scikit-learn reads."""
        return self.values * (1 / std)[None, :] if not self.is_sparse else self._times(1 / std)

    def project(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Values times [column, width], dense."""
        return np.asarray(self.values @ matrix)

    def _times(self, factors: NDArray[Any]) -> Any:
        import scipy.sparse

        return self.values @ scipy.sparse.diags_array(factors)


def _compressed(codes: SparseCodes) -> Any:
    import scipy.sparse

    if codes.n_tokens == 0:
        raise DataError("A probe was given codes without a row.")
    values = codes.values.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise DataError("A probe was given codes with NaN or infinite values.")
    # scikit-learn reads 32-bit indices only
    whole = np.int32 if codes.n_pairs < 2**31 else np.int64
    parts = (
        values,
        codes.indices.cpu().numpy().astype(whole),
        codes.offsets.cpu().numpy().astype(whole),
    )
    return scipy.sparse.csr_array(parts, shape=(codes.n_tokens, codes.d_sae))
