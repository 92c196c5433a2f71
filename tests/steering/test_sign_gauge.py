"""A signed latent turned around, with what is asked of it turned too, does the same to a model."""

import pytest
import torch

from saelab.activation_functions import AbsTopK
from saelab.sae import SAE
from saelab.steering import (
    Clamp,
    DescendCode,
    DescentConfig,
    Prototypes,
    Push,
    PushCode,
    Scale,
    prototypes,
)
from tests.tiny_models import tiny_language_model

HOOK, WIDTH = "blocks.1.hook_resid_post", 32
SIGN = torch.where(torch.arange(40) % 3 == 0, -1.0, 1.0)
PLACE = torch.zeros(12, dtype=torch.long)


def dictionary(sign=None):
    sae = SAE(WIDTH, 40, AbsTopK(5), hook=HOOK, seed=2)
    if sign is not None:
        with torch.no_grad():
            sae.W_dec.mul_(sign[:, None])
            sae.W_enc.mul_(sign)
            sae.b_enc.mul_(sign)
    return sae


def edits(sae, sign):
    """What is asked of latents 0 to 39, in the sign of the dictionary."""
    vector = torch.linspace(-1, 1, 40)
    kinds = Prototypes(names=("a", "b"), codes=torch.randn(2, 40) * sign)
    contrast = DescentConfig(loss="contrast", n_latents=9)
    return {
        "push": Push(sae, {3: 2.0 * float(sign[3]), 4: -1.0 * float(sign[4])}),
        "clamp": Clamp(sae, {3: 2.0 * float(sign[3])}),
        "scale": Scale(sae, dict.fromkeys(range(0, 40, 2), -1.0)),
        "push of a code": PushCode(sae, vector * sign, 0.7, "select"),
        "descent": DescendCode(sae, kinds, "b"),
        "descent by contrast": DescendCode(sae, kinds, "b", contrast),
    }


@pytest.mark.parametrize("name", edits(dictionary(), torch.ones(40)))
def test_turned_latents_with_turned_wishes_do_the_same(name):
    x, found = 3 * torch.randn(12, WIDTH), []
    for sign in (torch.ones(40), SIGN):
        torch.manual_seed(5)  # the same prototypes
        found.append(edits(dictionary(sign), sign)[name].change(x, x, PLACE))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], x)


def test_prototypes_turn_with_their_latents():
    model = tiny_language_model()
    texts = {"a": ["abc", "bca"], "b": ["123", "321"]}
    one, two = (prototypes(model, dictionary(sign), texts) for sign in (None, SIGN))
    torch.testing.assert_close(one.codes * SIGN, two.codes, atol=1e-5, rtol=1e-5)
    assert one.telling("a", 10).tolist() == two.telling("a", 10).tolist()
