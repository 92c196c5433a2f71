"""Activations and their addresses: on disk, in memory, or streamed from a model.

addresses < shuffling < capture < manifest < shards < resuming < sources < serving < mixing <
activations < joined
"""

from saelab.store.activations import ActivationStore
from saelab.store.addresses import Addresses
from saelab.store.capture import HarvestConfig
from saelab.store.joined import joined, paired
from saelab.store.manifest import Manifest
from saelab.store.mixing import Mixing
from saelab.store.serving import Batch, Rows
from saelab.store.shards import estimate_bytes

__all__ = [
    "ActivationStore",
    "Addresses",
    "Batch",
    "HarvestConfig",
    "Manifest",
    "Mixing",
    "Rows",
    "estimate_bytes",
    "joined",
    "paired",
]
