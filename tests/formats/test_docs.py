"""Every cell of docs/formats.md names a test that exists."""

import re
from pathlib import Path

from saelab import formats

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    missing = {name for name in named if f"def {name}(" not in sources}
    assert not missing


def test_every_format_has_a_row() -> None:
    rows = re.findall(r"^\| `([\w-]+)`: ", PAGE, flags=re.MULTILINE)
    assert set(rows) == set(formats.FORMATS)
