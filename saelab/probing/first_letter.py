"""Which words, and what does the model hold of them where it is about to be asked for a letter?

    words = first_letter_words(model, 3000)
    x = first_letter_activations(model, sae.hook, words)
    letters = [word[0] for word in words]
    measure_absorption(sae, x, letters, divide(np.array(letters)))

Each word stands at the end of a prompt of examples with other words,

     tartan has the first letter: T
     mirth has the first letter: M
     fox

and the activation at its last token is read; the model is causal, so what would follow changes
nothing. Words are single tokens that begin with a space, so no letter has a token of its own.

Source: Chanin et al. 2024, A is for Absorption, and SAEBench, whose words stand at the start of
a line without a space.
"""

import random
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.models import LanguageModel

__all__ = ["first_letter_activations", "first_letter_words"]


def first_letter_words(model: LanguageModel, n: int | None = None, seed: int = 0) -> list[str]:
    """Words of three lower-case letters or more that are one token with a space before, shuffled.

    Args:
        model: Whose tokens.
        n: How many; all if not given or if there are fewer.
        seed: Of the draw.

    Raises:
        DataError: The model has no such token, as where tokens are bytes.
    """
    special = model.special_token_ids
    texts = model.token_strings([i for i in range(model.d_vocab) if i not in special])
    words = {
        text[1:]
        for text in texts
        if len(text) > 3 and text[0] == " " and text[1:].isascii() and text[1:].isalpha()
        if text[1:].islower()
    }
    if not words:
        raise DataError(f"{model.name} has no token that is a space and a word of ASCII letters.")
    drawn = sorted(words)
    random.Random(seed).shuffle(drawn)
    return drawn[:n]


@torch.no_grad()
def first_letter_activations(
    model: LanguageModel,
    hook: str,
    words: Sequence[str],
    *,
    n_examples: int = 5,
    rows_per_batch: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Float[Tensor, "word d"]:
    """Activations at the last token of every word, each after examples with other words.

    Args:
        model: Reads the prompts.
        hook: Where it is read.
        words: The words; the examples are drawn from them too.
        n_examples: Examples before each word.
        rows_per_batch: Prompts a pass.
        seed: Of the examples.
        progress: Called with (words done, words).

    Raises:
        ConfigError: There are not more words than examples.
    """
    if len(set(words)) <= n_examples:
        raise ConfigError(f"{len(set(words))} different words, and {n_examples} examples each.")
    generator = random.Random(seed)
    first = [] if model.bos_token_id is None else [model.bos_token_id]
    found = []
    for start in range(0, len(words), rows_per_batch):
        prompts = []
        for word in words[start : start + rows_per_batch]:
            others = [one for one in generator.sample(list(words), n_examples + 1) if one != word]
            text = "".join(_example(one) for one in others[:n_examples])
            # encoded apart, so that the word's tokens are its own and end the prompt
            prompts.append([*first, *model.encode(text), *model.encode(f" {word}")])
        length = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(prompt), True
        acts = model.activations(tokens.to(model.device), [hook], mask.to(model.device))[hook]
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=acts.device)
        found.append(acts[torch.arange(len(prompts), device=acts.device), last].float().cpu())
        if progress is not None:
            progress(start + len(prompts), len(words))
    return torch.cat(found)


def _example(word: str) -> str:
    return f" {word} has the first letter: {word[0].upper()}\n"
