"""Write what the other libraries then open: python -m tests.golden.write."""

from saelab import formats
from tests.formats.by_hand import write_elsewhere
from tests.formats.cases import GOLDEN, OURS, dictionary

if __name__ == "__main__":
    for peer, cases in OURS.items():
        for name, (kind, settings) in cases.items():
            formats.export(dictionary(kind, **settings), GOLDEN / peer / "ours" / name, peer)
    write_elsewhere(GOLDEN / "saelens" / "elsewhere")
