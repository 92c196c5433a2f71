"""What saelab promises about speed and safety, as programs that measure it.

python -m benchmarks.harvest         throughput against plain transformers and TransformerLens
python -m benchmarks.kill_harvest    a harvest killed at random points ends with the same files

`saelab` is imported before torch, as its own commands do, so that torch's threads wait as they do
there.
"""

import saelab  # noqa: F401
