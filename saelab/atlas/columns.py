"""How do tensors become Arrow columns? Lists laid end to end, and nulls."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.atlas.schemas import arrow_type

__all__ = ["as_rows", "null_below_zero", "nulls", "ragged"]


def ragged(values: Any, lengths: Any) -> Any:
    """A list column from its values laid end to end and the length of each list."""
    import pyarrow as pa

    values, lengths = (np.asarray(one) for one in (values, lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def as_rows(values: Tensor) -> Any:
    """A list column from the rows of a matrix."""
    return ragged(values.flatten(), torch.full((len(values),), values.shape[1]))


def null_below_zero(values: Int[Tensor, " row"]) -> Any:
    """A column in which -1 becomes null."""
    import pyarrow as pa

    return pa.array(values.numpy(), mask=(values < 0).numpy())


def nulls(n: int, kind: str) -> Any:
    """A column of nothing."""
    import pyarrow as pa

    return pa.nulls(n, arrow_type(kind))
