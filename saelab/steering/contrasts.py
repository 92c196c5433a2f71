"""Which direction tells texts of one kind from texts of another? Four answers, from labels alone.

With h the activations of the texts' tokens at a hook point (the model's first token left out), or
of each text's last token only:

    difference_in_means  mean(h | positive) - mean(h | negative)
    principal_direction  first principal component of the differences of paired texts
    probe_direction      normal of the logistic regression that separates the two
    activation_addition  h(positive prompt) - h(negative prompt), position by position

The first and the last keep their natural length. The middle two only point, and have length 1.
All of them point from negative to positive.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, CorpusError
from saelab.models import LanguageModel
from saelab.steering.directions import Direction

__all__ = [
    "activation_addition",
    "difference_in_means",
    "principal_direction",
    "probe_direction",
    "text_activations",
    "token_rows",
]

POOLS = ("all", "last")
ROWS = 16
"""Texts in one forward pass."""


def difference_in_means(
    model: LanguageModel,
    hook: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    tokens: str = "all",
) -> Direction:
    """Mean activation of one kind of text minus that of another.

    v = mean(h | positive) - mean(h | negative), every token counting once.

    Args:
        model: The model.
        hook: Where to read, and where the direction is to be added.
        positive: Texts that have what is wanted.
        negative: Texts that have not.
        tokens: "all" tokens of each text, or its "last" one.

    Raises:
        ConfigError: `tokens` is neither.
        CorpusError: A text is empty or too long, or there is none.

    Source: Marks and Tegmark 2023; in AxBench (Wu et al. 2025) "DiffMean", over all tokens.
    """
    up, down = _two_kinds(model, hook, positive, negative, tokens)
    vector = torch.cat(up).mean(0) - torch.cat(down).mean(0)
    made = _made("difference in means", positive, negative, tokens)
    return Direction(vector=vector, hook=hook, name="difference in means", made=made)


def principal_direction(
    model: LanguageModel,
    hook: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    tokens: str = "all",
) -> Direction:
    """The direction along which paired texts differ most, of length 1.

    d_i = mean(h | positive_i) - mean(h | negative_i); v maximizes sum_i (v . d_i)^2, and the sign
    is that of sum_i v . d_i. The differences are not centered: what they share counts.

    Args:
        model: The model.
        hook: Where to read, and where the direction is to be added.
        positive: Texts that have what is wanted.
        negative: Their counterparts, in the same order.
        tokens: "all" tokens of each text, or its "last" one.

    Raises:
        ConfigError: The texts are not in pairs, or do not differ at all.
        CorpusError: A text is empty or too long, or there is none.

    Source: Zou et al. 2023, "Representation engineering", without their random signs, which
    centering needs and the sign of the sum makes superfluous.
    """
    if len(positive) != len(negative):
        raise ConfigError(
            f"Pairs need as many positive as negative texts; found {len(positive)} and "
            f"{len(negative)}."
        )
    up, down = _two_kinds(model, hook, positive, negative, tokens)
    differences = torch.stack([a.mean(0) - b.mean(0) for a, b in zip(up, down, strict=True)])
    if not bool(differences.any()):
        raise ConfigError("The texts of every pair are the same to the model: nothing to find.")
    vector = torch.linalg.svd(differences.double(), full_matrices=False).Vh[0]
    if float(differences.double().sum(0) @ vector) < 0:
        vector = -vector
    made = _made("principal direction", positive, negative, tokens)
    return Direction(vector=vector.float(), hook=hook, name="principal direction", made=made)


def probe_direction(
    model: LanguageModel,
    hook: str,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    tokens: str = "all",
    c: float = 1.0,
) -> Direction:
    """The normal of a logistic regression's border, of length 1.

    Fitted to centered activations divided by one number, the root of their mean variance, so that
    the penalty treats all directions of the model's space alike. It separates best, and for that
    very reason leans away from where the classes differ most if that direction carries noise: a
    detector rather than a cause.

    Args:
        model: The model.
        hook: Where to read, and where the direction is to be added.
        positive: Texts that have what is wanted.
        negative: Texts that have not.
        tokens: "all" tokens of each text, or its "last" one.
        c: Inverse strength of the L2 penalty, as in scikit-learn.

    Raises:
        ConfigError: `tokens` is neither, or c is not positive.
        CorpusError: A text is empty or too long, or there is none.
    """
    from sklearn.linear_model import LogisticRegression

    if not c > 0:
        raise ConfigError(f"c={c} must be positive: it is the inverse of the penalty's strength.")
    up, down = _two_kinds(model, hook, positive, negative, tokens)
    x, n_up = torch.cat([*up, *down]), sum(map(len, up))
    centered = (x - x.mean(0)).double()
    scaled = (centered / centered.square().mean().sqrt().clamp_min(1e-30)).numpy()
    labels = [1] * n_up + [0] * (len(x) - n_up)
    fitted = LogisticRegression(C=c, max_iter=1000).fit(scaled, labels)
    vector = torch.from_numpy(fitted.coef_[0]).float()
    made = _made("probe", positive, negative, tokens) | {"c": c}
    one = Direction(vector=vector, hook=hook, name="probe direction", made=made)
    return one.of_norm(1.0)


def activation_addition(
    model: LanguageModel, hook: str, positive: str, negative: str = ""
) -> Direction:
    """What one prompt has over another at each of its positions, to be added at those positions.

    v[p] = h(positive)[p] - h(negative)[p]. The shorter prompt is filled up with spaces on the
    right; an empty one becomes spaces throughout.

    Args:
        model: The model.
        hook: Where to read, and where the rows are to be added.
        positive: The prompt to add.
        negative: The prompt to subtract.

    Returns:
        A direction with a row per position, the model's first token included (its row is zero).

    Raises:
        ConfigError: The prompts differ in length and the model has no token for one space.
        CorpusError: Both are empty, or one is too long.

    Source: Turner et al. 2023, "Activation addition".
    """
    sides = [model.encode(text) for text in (positive, negative)]
    length = max(map(len, sides))
    if any(len(ids) < length for ids in sides):
        space = model.encode(" ")
        if len(space) != 1:
            raise ConfigError(
                f"The prompts have {len(sides[0])} and {len(sides[1])} tokens, and {model.name} "
                "has no token for one space to fill up with. Give prompts of equal length."
            )
        sides = [ids + space * (length - len(ids)) for ids in sides]
    if not length:
        raise CorpusError("Both prompts are empty: there is nothing to add.")
    first = [] if model.bos_token_id is None else [model.bos_token_id]
    rows = torch.tensor([[*first, *ids] for ids in sides])
    up, down = model.activations(rows, [hook])[hook].float()
    made = {"method": "activation addition", "positive": positive, "negative": negative}
    return Direction(vector=up - down, hook=hook, name="activation addition", made=made)


def text_activations(
    model: LanguageModel, hook: str, texts: Sequence[str], *, tokens: str = "all"
) -> list[Float[Tensor, "token d"]]:
    """Activations of each text's own tokens, or of its last one; float32 on the CPU.

    Args:
        model: The model.
        hook: Where to read.
        texts: Each is run by itself, after the model's first token.
        tokens: "all" or "last".

    Raises:
        ConfigError: `tokens` is neither.
        CorpusError: There is no text, or one is empty or too long.
    """
    if tokens not in POOLS:
        raise ConfigError(f"tokens={tokens!r} must be 'all' or 'last'.")
    rows = token_rows(model, texts)
    first = 0 if model.bos_token_id is None else 1
    found: list[Tensor] = []
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        length = max(map(len, some))
        mask = torch.tensor([[place < len(row) for place in range(length)] for row in some])
        ids = torch.tensor([row.tolist() + [0] * (length - len(row)) for row in some])
        x = model.activations(ids, [hook], mask)[hook].float().cpu()
        for row, own in zip(x, some, strict=True):
            begin = len(own) - 1 if tokens == "last" else first
            found.append(row[begin : len(own)])
    return found


def token_rows(model: LanguageModel, texts: Sequence[str]) -> list[Int[Tensor, " pos"]]:
    """Each text's token ids, after the model's first token.

    Raises:
        CorpusError: There is no text, or one is empty or too long.
    """
    if not texts or isinstance(texts, str):
        raise CorpusError("No texts were given: a list of at least one is needed.")
    first = [] if model.bos_token_id is None else [model.bos_token_id]
    rows = []
    for text in texts:
        ids = model.encode(text)
        if not ids:
            raise CorpusError(f"The text {text!r} has no tokens.")
        if model.n_ctx is not None and len(ids) + len(first) > model.n_ctx:
            raise CorpusError(
                f"A text has {len(ids):,} tokens; {model.name} can hold {model.n_ctx:,}. "
                "Give it in parts."
            )
        rows.append(torch.tensor([*first, *ids]))
    return rows


def _two_kinds(
    model: LanguageModel, hook: str, positive: Sequence[str], negative: Sequence[str], tokens: str
) -> tuple[list[Tensor], list[Tensor]]:
    return (
        text_activations(model, hook, positive, tokens=tokens),
        text_activations(model, hook, negative, tokens=tokens),
    )


def _made(
    method: str, positive: Sequence[str], negative: Sequence[str], tokens: str
) -> dict[str, object]:
    return {
        "method": method,
        "n_positive": len(positive),
        "n_negative": len(negative),
        "tokens": tokens,
    }
