"""Programs that make a dictionary: one file per recipe, the paper on top.

    python -m trainers.topk --help

They compose what the library knows and hold no algorithm. They are run from a checkout and are
not part of the installed package.
"""
