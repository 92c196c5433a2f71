"""What the tests of penalized families share: a random dictionary, and one step on it."""

from typing import Any

import torch

from saelab.kernels import GradientBuffers
from saelab.objectives import Step
from saelab.sae import SAE

D_IN, D_SAE, TOKENS, VARIANCE = 6, 20, 30, 2.5


def random_sae(activation, seed=0, **settings) -> Any:
    """A dictionary in float64 whose every parameter is random."""
    sae = SAE(D_IN, D_SAE, activation, **settings).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        sae.activation.constrain()
    return sae


def inputs(seed=1, tokens=TOKENS):
    """Random activations."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, D_IN, dtype=torch.float64, generator=generator)


def step_of(sae, x, terms, *, dead=None, progress=1.0, buffers=None) -> Step:
    """The step that a trainer would hand to the terms."""
    dead = torch.zeros(sae.d_sae, dtype=torch.bool) if dead is None else dead
    asked = {term.name: term.selection(sae, dead) for term in terms}
    extra = {name: selection for name, selection in asked.items() if selection is not None}
    forward = sae.forward_pairs(x, training=True, buffers=buffers, extra=extra)
    return Step(sae, forward, x, VARIANCE, buffers, progress)


def value(sae, x, terms, **settings):
    """The sum of the terms."""
    step = step_of(sae, x, terms, **settings)
    return torch.stack([term(step) for term in terms]).sum()


def gradients(sae, loss) -> dict[str, torch.Tensor]:
    """Gradient of every parameter, zero where none arrives."""
    parameters = dict(sae.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def buffered_gradients(sae, x, terms, **settings) -> dict[str, torch.Tensor]:
    """The same through the buffers that training uses."""
    parameters = dict(sae.named_parameters())
    buffers = GradientBuffers(list(parameters.values()))
    buffers.begin()
    value(sae, x, terms, buffers=buffers, **settings).backward()
    for parameter in parameters.values():
        if parameter.grad is not None:
            buffers.add(parameter, parameter.grad)
            parameter.grad = None
    buffers.finish()
    return {name: buffers.of(p) for name, p in parameters.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal to a millionth, parameter by parameter."""
    for name, expected in other.items():
        torch.testing.assert_close(
            one[name], expected, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )
