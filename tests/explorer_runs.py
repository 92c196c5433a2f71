"""A folder of small runs for the explorer's tests: a tiny model whose tokens are hostile.

The model has a word for everything that a page must not believe: markup, a script, Markdown, LaTeX,
letters that turn the line around, NUL, and a token of a million characters.
"""

import json
from pathlib import Path

import torch

from saelab.cli import main
from tests.tiny_models import tiny_llama, tiny_tokenizer
from trainers import abs_topk

HOSTILE = (
    "<script>window.hacked=1</script>",
    "<img/src=x/onerror=window.hacked=1>",
    "</span></div><h1>broken</h1>",
    '"onmouseover="window.hacked=1',
    "**bold**_and_[link](javascript:hacked=1)",
    "$\\frac{1}{2}$",
    ":material/delete:",
    "&lt;already&gt;&amp;escaped",
    "\u202etxet_desrever",
    "nul\x00inside",
    "x" * 1_000_000,
)
"""Tokens a page must show and never act on."""

PLAIN = ("the", "ship", "came", "home", "from", "war", "peace", "was", "near", "a", "harbor", "old")
HOOK = "blocks.1.hook_resid_post"


def make_runs(root: Path) -> Path:
    """Two dictionaries of one hook point, TopK and the signed AbsTopK, each with an atlas."""
    model = _model(root / "model")
    text = _text(root / "text.jsonl")
    runs = root / "runs"
    store = runs / "activations"
    asked = ["--model", str(model), "--text", str(text), "--length", "24"]
    _run("harvest", *asked, "--out", str(store), "--hook", HOOK, "--held-out", "0.2")
    size = ["--d-sae", "48", "--k", "4", "--tokens", "20000", "--batch-size", "256"]
    _run("train", str(store), "--out", str(runs / "topk"), *size)
    assert abs_topk.main([str(store), str(runs / "abs_topk"), *size]) == 0
    for name in ("topk", "abs_topk"):
        _run("evaluate", str(runs / name))
        _run("atlas", str(runs / name))
    return runs


def _run(*words: str) -> None:
    assert main(list(words)) == 0, f"saelab {' '.join(words[:2])} failed"


def _model(folder: Path) -> Path:
    words = (*PLAIN, *HOSTILE)
    tiny_llama(d_vocab=2 + len(words)).save_pretrained(folder)
    tiny_tokenizer(words).save_pretrained(folder)
    return folder


def _text(path: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    words = (*PLAIN, *PLAIN, *HOSTILE[:-1])
    documents = []
    for number in range(60):
        picked = torch.randint(0, len(words), (60,), generator=generator).tolist()
        inside = [words[i] for i in picked]
        if number % 20 == 0:  # a megabyte three times is enough
            inside[30] = HOSTILE[-1]
        documents.append(" ".join(inside))
    lines = [json.dumps({"text": document}) for document in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_surveyed_runs(base: Path) -> Path:
    """Small runs with their geometry and two collections of documents; made once under `base`."""
    root = base / "surveyed"
    runs = root / "runs"
    if (root / "done").exists():
        return runs
    store = runs / "activations"
    asked = ["--model", str(_model(root / "model")), "--text", str(_text(root / "text.jsonl"))]
    _run("harvest", *asked, "--out", str(store), "--hook", HOOK, "--length", "24")
    size = ["--k", "4", "--tokens", "6000", "--batch-size", "256"]
    _run("train", str(store), "--out", str(runs / "topk"), "--d-sae", "48", *size)
    _run("train", str(store), "--out", str(runs / "wide"), "--d-sae", "96", *size)
    assert abs_topk.main([str(store), str(runs / "abs_topk"), "--d-sae", "48", *size]) == 0
    small = ["--chunk-tokens", "4", "--lobes", "2", "--lobes", "3", "--draws", "2"]
    texts = {
        name: _dated(root / f"{name}.jsonl", seed) for name, seed in (("letters", 5), ("others", 6))
    }
    for name, wider in (("topk", ["--wider", str(runs / "wide")]), ("abs_topk", [])):
        _run("atlas", str(runs / name))
        _run("geometry", str(runs / name), *small, "--shuffles", "20", *wider)
        for collection in texts if name == "topk" else ("letters",):
            asked = ["--text", str(texts[collection]), "--name", collection]
            _run("documents", str(runs / name), *asked)
    (root / "done").touch()
    return runs


def _dated(path: Path, seed: int) -> Path:
    """Documents with a year and an author; those from 1900 on are of war, the others are not."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for number in range(40):
        year = 1860 + 2 * number
        pool = (*PLAIN[:6], *(("war", "peace") if year >= 1900 else ("harbor", "old")) * 4)
        words = [pool[i] for i in torch.randint(0, len(pool), (30,), generator=generator).tolist()]
        words[7] = HOSTILE[number % 4]
        author = HOSTILE[0] if number % 3 else "Mrs. Dalloway"
        lines.append(json.dumps({"text": " ".join(words), "year": year, "author": author}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
