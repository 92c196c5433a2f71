import pytest
import torch

from saelab.training.optimizers import Adam, _Noise, learning_rate


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


def test_rounded_moments_take_half_the_memory_and_follow_the_exact_ones():
    """On noisy gradients around a constant: m and v end at their means, within the noise."""
    parameters = [torch.zeros(3000, 4) for _ in range(2)]
    exact = Adam({"p": parameters[0]})
    rounded = Adam({"p": parameters[1]}, moments="bfloat16")
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        gradient = 1e-3 * (1 + torch.randn(3000, 4, generator=generator))
        exact.step({"p": gradient.clone()}, 1e-3)
        rounded.step({"p": gradient.clone()}, 1e-3)
    one, other = exact.state(), rounded.state()
    assert other["first.p"].dtype == other["second.p"].dtype == torch.bfloat16
    for name in ("first.p", "second.p"):
        ratio = other[name].float().mean() / one[name].mean()
        assert ratio.item() == pytest.approx(1, abs=2e-3), name
    gap = (parameters[0] - parameters[1]).norm() / parameters[0].norm()
    assert gap < 0.02


def test_rounded_second_moments_fall_when_gradients_vanish():
    """Rounded to nearest, 0.999 v would be v again for ever."""
    optimizer = Adam({"p": torch.zeros(4000)}, moments="bfloat16")
    optimizer.step({"p": torch.ones(4000)}, 0.0)
    start = optimizer.state()["second.p"].float().mean().item()
    for _ in range(500):
        optimizer.step({"p": torch.zeros(4000)}, 0.0)
    now = optimizer.state()["second.p"].float().mean().item()
    assert now / start == pytest.approx(0.999**500, rel=0.02)
    v = torch.tensor(start).bfloat16()
    assert (v * 0.999).bfloat16() == v, "plain rounding would do, and this test shows nothing"


def test_rounded_moments_go_on_from_a_saved_state_with_the_same_bits():
    def gradient(i):
        return {"p": torch.randn(70_000, 3, generator=torch.Generator().manual_seed(i))}

    straight, resumed = torch.ones(70_000, 3), torch.ones(70_000, 3)
    optimizer = Adam({"p": straight}, moments="bfloat16")
    for i in range(4):
        optimizer.step(gradient(i), 0.01)
    first = Adam({"p": resumed}, moments="bfloat16")
    for i in range(2):
        first.step(gradient(i), 0.01)
    second = Adam({"p": resumed}, moments="bfloat16")
    second.load({name: value.clone() for name, value in first.state().items()})
    for i in range(2, 4):
        second.step(gradient(i), 0.01)
    assert torch.equal(resumed, straight)
    assert straight.isfinite().all()


def test_rounding_keeps_what_bfloat16_can_hold_and_chooses_a_neighbor_otherwise():
    noise = _Noise(1, 65_536, torch.device("cpu"))
    held = torch.tensor([0.0, -0.0, 1.0, -2.5, 1e-30])
    assert torch.equal(noise.round(held.bfloat16().float()), held.bfloat16())
    between = torch.full((60_000,), 1 + 0.25 / 128)  # a quarter of the way from 1 to 1 + 1/128
    values, counts = noise.round(between).float().unique(return_counts=True)
    assert values.tolist() == [1.0, 1 + 1 / 128]
    assert counts[1].item() / 60_000 == pytest.approx(0.25, abs=0.01)
