"""How is one shard written and read, and how large will a store be?

A shard is one file per hook point, `<hook folder>/00000.safetensors`, with `activations`
`[token, width]` in the storage dtype, and one file they share, `addresses/00000.safetensors`, with
the int32 columns `document`, `row`, `position` and `token`. The rows of all of them are aligned.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saelab.errors import StoreError
from saelab.files import sha256_of, write_tensors
from saelab.store.addresses import Addresses
from saelab.store.capture import STORAGE_DTYPES
from saelab.store.manifest import ADDRESSES, FileRecord, HookRecord, ShardRecord
from saelab.tokens import Tokens

__all__ = [
    "check_file",
    "estimate_bytes",
    "read_activations",
    "read_addresses",
    "shard_path",
    "write_shard_file",
]

_HEADER_BYTES = 400  # of a safetensors file, at most; a FileRecord in the manifest is smaller
_MANIFEST_BYTES = 4096
_ADDRESS_BYTES = 16
_REMEDY = "Restore the file, or delete it and run the same harvest again: it is made anew."


def shard_path(folder: Path, sub_folder: str, index: int) -> Path:
    """Where a file of shard `index` is."""
    return folder / sub_folder / f"{index:05d}.safetensors"


def write_shard_file(path: Path, tensors: dict[str, Tensor]) -> FileRecord:
    """Write one file of a shard atomically."""
    sha256 = write_tensors(path, tensors)
    return FileRecord(bytes=path.stat().st_size, sha256=sha256)


def check_file(path: Path, record: FileRecord, *, content: bool) -> None:
    """Compare a file with the manifest.

    Args:
        path: The file.
        record: What the manifest says of it.
        content: Whether to hash it too, not only look at its size.

    Raises:
        StoreError: It is missing, has another size, or its content was altered.
    """
    if not path.exists():
        raise StoreError(
            f"{path} is missing, though the manifest lists it. Restore it, or run the same harvest "
            "again: it is made anew."
        )
    size = path.stat().st_size
    if size != record.bytes:
        how = "truncated" if size < record.bytes else "longer than written"
        raise StoreError(
            f"{path} is {how}: {size} bytes, and the manifest says {record.bytes}. {_REMEDY}"
        )
    if content and sha256_of(path) != record.sha256:
        raise StoreError(
            f"{path} was altered after it was written: its SHA-256 differs from the manifest's. "
            f"{_REMEDY}"
        )


def read_activations(
    folder: Path, hook: HookRecord, dtype: str, shard: ShardRecord, *, content: bool
) -> Float[Tensor, "token {hook.width}"]:
    """Activations of one shard at one hook point, mapped from disk.

    Raises:
        StoreError: The file is missing, truncated, altered, or of another dtype or shape.
    """
    path = shard_path(folder, hook.folder, shard.index)
    record = shard.files[hook.folder]
    x = _mapped(path, record, ["activations"])["activations"]
    if x.dtype != STORAGE_DTYPES[dtype]:
        raise StoreError(
            f"{path} holds {str(x.dtype).removeprefix('torch.')} activations, and the manifest "
            f"says {dtype}. {_REMEDY}"
        )
    if tuple(x.shape) != (shard.n_tokens, hook.width):
        raise StoreError(
            f"{path} holds activations of shape {tuple(x.shape)}, and the manifest says "
            f"{(shard.n_tokens, hook.width)}. {_REMEDY}"
        )
    check_file(path, record, content=content)
    return x


def read_addresses(folder: Path, shard: ShardRecord, *, content: bool) -> Addresses:
    """Addresses of one shard.

    Raises:
        StoreError: The file is missing, truncated or altered.
    """
    path = shard_path(folder, ADDRESSES, shard.index)
    record = shard.files[ADDRESSES]
    check_file(path, record, content=content)
    addresses = Addresses.from_tensors(
        _mapped(path, record, ["document", "row", "position", "token"])
    )
    if len(addresses) != shard.n_tokens:
        raise StoreError(
            f"{path} holds {len(addresses)} addresses, and the manifest says {shard.n_tokens}. "
            f"{_REMEDY}"
        )
    return addresses


def _mapped(path: Path, record: FileRecord, names: Sequence[str]) -> dict[str, Tensor]:
    if not path.exists():
        check_file(path, record, content=False)
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, ValueError) as cause:
        check_file(path, record, content=True)  # says how it differs, when it does
        raise StoreError(f"{path} is not a shard of a store: {cause}. {_REMEDY}") from None


def estimate_bytes(
    tokens: Tokens | int,
    widths: Sequence[int],
    dtype: str = "bfloat16",
    tokens_per_shard: int = 65536,
) -> int:
    """Disk a harvest will need, in bytes; at most a few KiB per shard too many.

    kept tokens x (sum of widths x bytes per number + 16 for the address), plus the file headers,
    the manifest and the copy of the tokens.

    Args:
        tokens: What will be harvested, or how many token positions.
        widths: Width of each hook point.
        dtype: Storage dtype.
        tokens_per_shard: As in `HarvestConfig`.

    >>> estimate_bytes(1_000_000, [576]) // 10**6  # 1,152 + 16 bytes a token, 9 for its copy
    1177
    """
    n_tokens, n_kept = (
        (tokens, tokens) if isinstance(tokens, int) else (tokens.n_tokens, tokens.n_kept)
    )
    per_token = sum(widths) * STORAGE_DTYPES[dtype].itemsize + _ADDRESS_BYTES
    n_shards = -(-n_tokens // tokens_per_shard) + 1
    files = n_shards * (len(widths) + 1) * 2 * _HEADER_BYTES
    copy_of_tokens = n_tokens * 9  # int32 id, int32 document, one byte kept
    return n_kept * per_token + files + copy_of_tokens + _MANIFEST_BYTES
