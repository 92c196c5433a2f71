"""What every test shares: no network, fixed seeds, one thread a worker, a tiny model on disk."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Whatever a test draws from the global generator, it draws the same each time."""
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def own_main() -> Iterator[None]:
    """Streamlit's test runner leaves its script as `__main__`, which new processes would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: the tiny Llama of `tiny_models`, with its byte tokenizer."""
    from tests.tiny_models import tiny_llama, tiny_tokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 120 short documents in which nothing repeats, about 16,000 bytes."""
    generator = torch.Generator().manual_seed(7)
    lines = []
    for number in range(120):
        letters = torch.randint(ord("a"), ord("z") + 1, (22, 4), generator=generator).tolist()
        text = " ".join("".join(map(chr, word)) for word in letters)
        lines.append(json.dumps({"text": f"Letter {number}: {text}."}))
    path = tmp_path_factory.mktemp("text") / "letters.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
