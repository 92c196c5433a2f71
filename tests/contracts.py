"""The objects that every promise in tests/test_activation_functions.py and test_sae.py runs on."""

import copy

import torch

from saelab.activation_functions import (
    AbsTopK,
    ActivationFunction,
    BatchAbsTopK,
    BatchTopK,
    Choice,
    Gated,
    GradientTopK,
    GroupMax,
    JumpReLU,
    NormMatching,
    ReLU,
    TopK,
)


def activation_functions() -> list[ActivationFunction]:
    """One of each, set up for 5 x 12; the learned ones as if they had been trained."""
    found = [
        ReLU(),
        TopK(3),
        AbsTopK(3),
        GroupMax(3),
        BatchTopK(2.5),
        BatchAbsTopK(2.5),
        JumpReLU(threshold=0.3, bandwidth=0.2),
        Gated(),
        Choice(2.5),
        GradientTopK(3, 1.0, "somewhere.grad"),
        NormMatching(norm=1.5),
    ]
    for activation in found:
        activation.setup(5, 12)
        if isinstance(activation, BatchTopK | BatchAbsTopK):
            activation.threshold.fill_(0.7)
        if isinstance(activation, Choice):
            activation.threshold.copy_(torch.linspace(0, 1.1, 12))
        if isinstance(activation, JumpReLU):
            with torch.no_grad():
                activation.threshold.copy_(torch.linspace(0, 1.1, 12))
        if isinstance(activation, Gated):
            with torch.no_grad():
                activation.offset.copy_(torch.linspace(-0.6, 1.1, 12))
                activation.log_scale.copy_(torch.linspace(0.5, -0.5, 12))
    return found


def permuted(activation: ActivationFunction, seed: int) -> tuple[torch.Tensor, ActivationFunction]:
    """A reordering of 12 latents that the rule allows, and the rule with what it learned moved."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(activation, GroupMax):  # within a group, and whole groups
        groups = torch.arange(12).reshape(activation.k, -1)
        groups = groups[torch.randperm(activation.k, generator=generator)]
        order = torch.cat(
            [group[torch.randperm(len(group), generator=generator)] for group in groups]
        )
    else:
        order = torch.randperm(12, generator=generator)
    moved = copy.deepcopy(activation)
    if isinstance(moved, JumpReLU | Choice):
        with torch.no_grad():
            moved.threshold.copy_(moved.threshold[order])
    if isinstance(moved, Gated):
        with torch.no_grad():
            moved.offset.copy_(moved.offset[order])
            moved.log_scale.copy_(moved.log_scale[order])
    return order, moved
