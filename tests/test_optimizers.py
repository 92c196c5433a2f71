import pytest
import torch

from saelab.optimizers import Adam, learning_rate


def test_adam_equals_torchs_adam_for_plain_and_transposed_parameters():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    plain, transposed = start.clone(), start.T.contiguous().T
    reference = start.clone().requires_grad_()
    ours = Adam({"plain": plain, "transposed": transposed}, betas=(0.9, 0.99), eps=1e-8)
    theirs = torch.optim.Adam([reference], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    assert not transposed.is_contiguous()
    for i in range(5):
        gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(i + 1))
        lr = 0.1 / (i + 1)
        reference.grad = gradient.clone() / 2.0
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
        gradients = {"plain": gradient.clone(), "transposed": gradient.T.contiguous().T}
        ours.step(gradients, lr, scale=2.0)
        torch.testing.assert_close(plain, reference.detach())
        torch.testing.assert_close(transposed, reference.detach())


def test_adam_goes_on_from_a_saved_state_with_the_same_bits():
    def gradient(i):
        return {"p": torch.randn(5, generator=torch.Generator().manual_seed(i))}

    straight = torch.ones(5)
    optimizer = Adam({"p": straight})
    for i in range(6):
        optimizer.step(gradient(i), 0.01)
    resumed = torch.ones(5)
    first = Adam({"p": resumed})
    for i in range(3):
        first.step(gradient(i), 0.01)
    second = Adam({"p": resumed})
    second.load({name: value.clone() for name, value in first.state().items()})
    for i in range(3, 6):
        second.step(gradient(i), 0.01)
    assert torch.equal(resumed, straight)


def test_reset_forgets_the_moments_of_the_given_rows_only():
    optimizer = Adam({"p": torch.ones(3, 2)})
    optimizer.step({"p": torch.ones(3, 2)}, 0.1)
    optimizer.reset("p", torch.tensor([1]))
    first = optimizer.state()["first.p"]
    assert not first[1].any() and first[0].all() and first[2].all()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0.0), (50, 0.5), (100, 1.0), (500, 1.0), (800, 1.0), (900, 0.5), (1000, 0.0), (1200, 0.0)],
)
def test_the_rate_rises_holds_and_falls(tokens, expected):
    rate = learning_rate(tokens, total=1000, peak=1.0, warmup=100, decay_from=800)
    assert rate == pytest.approx(expected)


def test_without_warmup_or_decay_the_rate_is_constant():
    rates = {learning_rate(t, total=10, peak=2.0, warmup=0, decay_from=10) for t in range(11)}
    assert rates == {2.0}
