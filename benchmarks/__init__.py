"""What saelab promises about speed and safety, as programs that measure it.

python -m benchmarks.harvest         throughput against plain transformers and TransformerLens
python -m benchmarks.kill_harvest    a harvest killed at random points ends with the same files
"""
