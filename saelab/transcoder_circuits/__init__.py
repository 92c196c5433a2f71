"""How do transcoders connect: by their weights alone, and along which paths on a prompt?

    weight_map   connections and de-embeddings that no prompt changes, through heads too
    paths        greedy paths from a target back to the prompt, with what holds it down

Both are exact on the frozen map; what a connection is worth on a prompt is a path of one step.
"""

from saelab.transcoder_circuits.paths import Path, PathConfig, PathSums, greedy_paths, sum_paths
from saelab.transcoder_circuits.weight_map import Head, WeightMap

__all__ = [
    "Head",
    "Path",
    "PathConfig",
    "PathSums",
    "WeightMap",
    "greedy_paths",
    "sum_paths",
]
