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
