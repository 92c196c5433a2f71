import pytest
import torch

from saelab.errors import ConfigError, ShapeError
from saelab.planted import PlantedAtoms, recovery
from saelab.proximal import (
    PENALTIES,
    code_from_correlations,
    objective,
    prox,
    sparse_code,
    step_size,
)

NAMES = pytest.mark.parametrize("name", PENALTIES)
PLANTED = PlantedAtoms(d=16, n_atoms=32, l0=3.0, exact=True, offset=0.0)


def price(name, z, lam, norms=1.0):
    return PENALTIES[name].value(z, lam, norms)


@NAMES
@pytest.mark.parametrize(("lam", "step"), [(1.0, 1.0), (0.3, 0.5), (2.0, 0.25), (0.01, 0.9)])
@pytest.mark.parametrize("norms", [1.0, 0.6])
def test_prox_is_the_argmin_on_a_grid(name, lam, step, norms):
    grid = torch.linspace(-6, 6, 120_001, dtype=torch.float64)
    grid[60_000] = 0  # and not nearly 0
    u = torch.linspace(-4, 4, 53, dtype=torch.float64)
    cost = (grid - u[:, None]).square() / 2 + step * price(name, grid, lam, norms)
    best = cost.min(1)
    found = prox(name)(u, lam, step, norms)
    reached = (found - u).square() / 2 + step * price(name, found, lam, norms)
    assert (reached <= best.values + 1e-12).all()
    near_tie = cost[:, 60_000] - best.values < 1e-6
    same = (found - grid[best.indices]).abs() < 2e-4
    assert (same | near_tie).all()


@NAMES
def test_prox_is_odd_and_never_lengthens(name):
    u = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = prox(name)(u, 0.2, 0.7)
    assert torch.equal(prox(name)(-u, 0.2, 0.7), -found)
    assert (found.abs() <= u.abs() + 1e-12).all()
    assert (found * u >= 0).all()


@NAMES
def test_lam_at_names_the_price_that_zeroes_up_to_a_size(name):
    lam = PENALTIES[name].lam_at(0.02)  # small enough that `log` is continuous there
    u = torch.tensor([0.0199, 0.0201], dtype=torch.float64)
    assert (prox(name)(u, lam) != 0).tolist() == [False, True]
    ratio = PENALTIES[name].lam_at(0.4) / PENALTIES[name].lam_at(0.2)
    assert ratio == pytest.approx(2 ** PENALTIES[name].power)


def test_cel0_with_a_step_at_its_bound_is_hard_thresholding():
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    assert torch.equal(prox("cel0")(u, 0.5, 4.0, 0.5), prox("hard")(u, 0.5, 4.0))


@NAMES
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("accelerate", [False, True])
def test_no_step_raises_the_objective_of_any_token(name, signed, accelerate):
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(20, 8, generator=generator, dtype=torch.float64)  # any lengths
    x = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    settings = {"signed": signed, "accelerate": accelerate, "step": step_size(dictionary)}
    latents = torch.zeros(60, 20, dtype=torch.float64)
    before = objective(dictionary, x, latents, name, 0.3)
    start = before
    for _ in range(8):  # five steps at a time, each stretch from where the last ended
        latents = code_from_correlations(
            x @ dictionary.T, dictionary, name, 0.3, 5, start=latents, **settings
        )
        after = objective(dictionary, x, latents, name, 0.3)
        assert (after <= before + 1e-10).all()
        before = after
    assert before.mean() < 0.8 * start.mean()
    assert bool((latents < 0).any()) == signed


def test_a_soft_code_is_optimal():
    x = PLANTED.sample(50, seed=1).double()
    atoms = PLANTED.atoms.double()
    latents = sparse_code(atoms, x, "soft", 0.2, 2000).dense()
    slope = (x - latents @ atoms) @ atoms.T
    # At the minimum the slope is lam where a latent is active, and at most lam elsewhere.
    assert (slope[latents > 0] - 0.2).abs().max() < 1e-6
    assert slope.max() < 0.2 + 1e-6


def test_acceleration_gets_there_sooner():
    x = PLANTED.sample(200, seed=1)
    plain, fast = (
        objective(
            PLANTED.atoms,
            x,
            sparse_code(PLANTED.atoms, x, "soft", 0.05, 20, accelerate=on).dense(),
            "soft",
            0.05,
        ).mean()
        for on in (False, True)
    )
    best = objective(
        PLANTED.atoms, x, sparse_code(PLANTED.atoms, x, "soft", 0.05, 2000).dense(), "soft", 0.05
    ).mean()
    assert fast - best < 0.5 * (plain - best)


def test_without_a_price_the_code_is_least_squares():
    square = torch.diag(torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64))
    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    codes = sparse_code(square, x, "soft", 0.0, 500, signed=True)
    assert (codes.dense() - torch.tensor([[1.0, -4.0, 1.5]])).abs().max() < 1e-6


@NAMES
def test_rows_do_not_depend_on_each_other_and_latents_may_be_permuted(name, monkeypatch):
    x, atoms = PLANTED.sample(40, seed=1).double(), PLANTED.atoms.double()
    whole = sparse_code(atoms, x, name, 0.1, 30).dense()
    torch.testing.assert_close(sparse_code(atoms, x[7:8], name, 0.1, 30).dense(), whole[7:8])
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sparse_code(atoms[order], x, name, 0.1, 30).dense(), whole[:, order])
    monkeypatch.setattr("saelab.proximal.CHUNK_BYTES", 1)  # sixteen rows a chunk
    torch.testing.assert_close(sparse_code(atoms, x, name, 0.1, 30).dense(), whole)


def test_what_makes_no_sense_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="no penalty 'firm'; known are soft, half, log, hard"):
        sparse_code(torch.eye(3), x, "firm", 0.1)
    with pytest.raises(ConfigError, match="lam=-1"):
        sparse_code(torch.eye(3), x, "soft", -1.0)
    with pytest.raises(ShapeError, match="width 4 and activations of width 3"):
        sparse_code(torch.eye(4), x, "soft", 0.1)


def learned(penalty, k, steps=100):
    """A dictionary learned with one penalty at a mean of k latents; (atoms, lam)."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(32, 16, generator=generator)
    atoms /= atoms.norm(dim=1, keepdim=True)
    lam = PENALTIES[penalty].lam_at(0.5)
    for step in range(steps):
        x = PLANTED.sample(128, seed=100 + step)
        codes = sparse_code(atoms, x, penalty, lam, 16).dense()
        moved = codes.T @ (x - codes @ atoms) / (codes.square().sum(0).unsqueeze(1) + 1)
        atoms = atoms + (1 - step / steps) * moved
        atoms /= atoms.norm(dim=1, keepdim=True)
        l0 = (codes != 0).sum() / 128
        lam *= float((l0 / k).clamp(0.5, 2)) ** (0.1 * PENALTIES[penalty].power)
    return atoms, lam


def fvu_at(atoms, penalty, lam, k):
    """Fraction of variance unexplained at k latents on average, by bisection of lam."""
    x = PLANTED.sample(400, seed=5)
    low, high = lam / 4, lam * 4
    for _ in range(12):
        middle = (low * high) ** 0.5
        many = sparse_code(atoms, x, penalty, middle, 50).n_pairs > k * 400
        low, high = (middle, high) if many else (low, middle)
    codes = sparse_code(atoms, x, penalty, high, 50)
    assert codes.n_pairs / 400 == pytest.approx(k, rel=0.02)
    return float((x - codes.dense() @ atoms).square().sum() / (x - x.mean(0)).square().sum())


def test_at_the_same_number_of_latents_penalties_that_shrink_less_reconstruct_better():
    found = {name: learned(name, 3.0) for name in ("hard", "half", "soft")}
    assert recovery(PLANTED.atoms, found["hard"][0]) > 0.9
    fvu = {name: fvu_at(atoms, name, lam, 3.0) for name, (atoms, lam) in found.items()}
    assert fvu["hard"] < 0.6 * fvu["half"]
    assert fvu["half"] < 0.3 * fvu["soft"]
