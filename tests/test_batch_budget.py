"""BatchTopK's threshold where budgets are not filled, its error at inference, and Matryoshka."""

import pytest
import torch

from saelab.activation_functions import BatchAbsTopK, BatchTopK, SelectAgain, TopK
from saelab.activation_functions.per_batch import budget_of
from saelab.kernels import encode_pairs
from saelab.objectives import AuxK, Matryoshka, Reconstruction, Step
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig


def step(activation, z):
    """A training step's selection from given pre-activations; returns the kept strengths."""
    while True:
        ((pairs, values),) = encode_pairs(
            z, torch.eye(z.shape[1]), torch.zeros(z.shape[1]), [activation.select_training]
        )
        try:
            kept = activation.settle(pairs, values)
        except SelectAgain:
            continue
        values = values if kept is None else values[kept]
        activation.observe(values)
        return activation.strength(values)


def budget(kind, k, d_sae):
    activation = kind(k)
    activation.setup(4, d_sae)
    return activation


def test_batches_with_too_few_positive_entries_do_not_pull_the_threshold_to_zero():
    # Early in training, or with a large k, a batch may have fewer positive entries than its budget.
    activation, generator = budget(BatchTopK, 4.0, 16), torch.Generator().manual_seed(0)
    full = torch.rand(50, 16, generator=generator) + 1.0
    step(activation, full)
    border = activation.threshold.item()
    assert border > 1
    sparse = torch.where(torch.rand(50, 16, generator=generator) < 0.1, 1e-3, -1.0)
    for _ in range(20):
        assert len(step(activation, sparse)) < 200
    assert activation.threshold.item() == border
    # Full batches go on moving it.
    step(activation, 3 * full)
    assert activation.threshold.item() == pytest.approx(2 * border)


@pytest.mark.parametrize("kind", [BatchTopK, BatchAbsTopK])
def test_the_threshold_lies_between_the_batches_weakest(kind):
    activation, generator = budget(kind, 2.5, 30), torch.Generator().manual_seed(1)
    weakest = []
    for _ in range(10):
        kept = step(activation, torch.randn(64, 30, generator=generator))
        assert len(kept) == 160
        weakest.append(kept.min().item())
    assert min(weakest) < activation.threshold.item() < max(weakest)
    assert activation.threshold.item() == pytest.approx(sum(weakest) / 10)


def test_a_fractional_budget_is_rounded_down_and_never_to_nothing():
    assert budget_of(2.5, 3) == 7
    assert budget_of(0.29, 100) == 29  # 0.29 * 100 is 28.999999999999996
    assert len(step(budget(BatchTopK, 0.01, 8), torch.rand(5, 8))) == 1


def test_equal_strengths_at_the_border_go_to_the_first_tokens_whatever_the_guess():
    for guess in (None, 0.0, 0.99):
        activation = budget(BatchTopK, 1.5, 4)
        activation._border.guess = guess
        ((found, values),) = encode_pairs(
            torch.ones(4, 4), torch.eye(4), torch.zeros(4), [activation.select_training]
        )
        while True:
            try:
                kept = activation.settle(found, values)
                break
            except SelectAgain:
                ((found, values),) = encode_pairs(
                    torch.ones(4, 4), torch.eye(4), torch.zeros(4), [activation.select_training]
                )
        assert kept is not None
        pairs = (found.tokens() * 4 + found.indices)[kept].tolist()
        assert pairs == [0, 1, 2, 3, 4, 5]


def two_difficulties(n, seed):
    """Half the tokens with 1 atom, half with 5, of 48 in 32 dimensions: 3 on average."""
    generator = torch.Generator().manual_seed(11)
    atoms = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    generator.manual_seed(seed)
    ranks = torch.rand(n, 48, generator=generator).argsort(1).argsort(1)
    count = torch.where(torch.rand(n, 1, generator=generator) < 0.5, 1, 5)
    size = 0.5 + torch.rand(n, 48, generator=generator)
    return (size * (ranks < count)) @ atoms


def fvu(x, recons):
    return ((x - recons).square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.fixture(scope="module")
def fitted():
    """TopK and BatchTopK on tokens that differ in difficulty."""
    found = {}
    for activation in (TopK(3), BatchTopK(3.0)):
        torch.manual_seed(0)
        sae = SAE(32, 64, activation)
        store = ActivationStore.from_tensor(two_difficulties(16_384, 1))
        config = TrainConfig(tokens=512 * 250, batch_size=512, lr=5e-3, warmup=0.0)
        train(sae, store, config)
        found[activation.name] = sae
    return found


@torch.no_grad()
def test_a_shared_budget_serves_hard_tokens_and_the_threshold_keeps_its_error(fitted):
    x = two_difficulties(4096, 2)
    topk, batch = fitted["topk"], fitted["batchtopk"]
    assert fvu(x, batch(x)) < 0.85 * fvu(x, topk(x))
    scaled = x * batch.normalization.scale_in
    shared = batch.forward_pairs(scaled, training=True).recons / batch.normalization.scale_out
    assert fvu(x, batch(x)) == pytest.approx(fvu(x, shared), rel=0.05)
    assert batch.encode(x).l0().float().mean() == pytest.approx(3.0, rel=0.05)
    # The mistake this guards against: the training rule on a batch of one.
    alone = torch.cat(
        [batch.forward_pairs(row, training=True).recons for row in scaled[:512, None]]
    )
    assert fvu(x[:512], alone / batch.normalization.scale_out) > 1.2 * fvu(x[:512], batch(x[:512]))


PARENTS, CHILDREN = 6, 3


def hierarchy(n, seed):
    """Parents, and children that are there only with their parent; which parents and atoms."""
    generator = torch.Generator().manual_seed(11)
    total = PARENTS * (1 + CHILDREN)
    atoms = torch.nn.functional.normalize(torch.randn(total, 48, generator=generator), dim=1)
    generator.manual_seed(seed)
    parents = torch.rand(n, PARENTS, generator=generator) < 0.25
    which = torch.randint(0, CHILDREN + 1, (n, PARENTS), generator=generator)
    children = torch.nn.functional.one_hot(which, CHILDREN + 1)[..., :CHILDREN].bool()
    children &= parents.unsqueeze(2)
    active = torch.cat([parents, children.flatten(1)], 1)
    size = 0.7 + 0.6 * torch.rand(n, total, generator=generator)
    return atoms, (active * size) @ atoms


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*of the latents fired on none")
def test_matryoshka_puts_parents_into_the_first_prefix():
    places = {}
    for name, term in (
        ("nested", Matryoshka(shares=(0.25, 0.25, 0.5))),
        ("plain", Reconstruction()),
    ):
        atoms, x = hierarchy(16_384, 1)
        sae = SAE(48, 24, BatchTopK(2.5))
        config = TrainConfig(tokens=512 * 400, batch_size=512, lr=5e-3, warmup=0.0)
        train(sae, ActivationStore.from_tensor(x), config, terms=[term, AuxK()])
        nearest = (atoms[:PARENTS] @ sae.W_dec.detach().T).argmax(1)
        places[name] = nearest.float().mean().item()
    assert places["nested"] < 6  # the first prefix holds latents 0 to 5
    assert places["plain"] > 7  # anywhere among the 24


def test_a_prefix_alone_reconstructs_what_the_term_says():
    sae = SAE(8, 16, BatchTopK(3.0), dtype=torch.float64)
    x = torch.randn(40, 8, dtype=torch.float64)
    forward = sae.forward_pairs(x, training=True)
    term = Matryoshka(shares=(0.25, 0.75))
    total = term(Step(sae, forward, x, 1.0, None)).item()
    latents = torch.zeros(40, 16, dtype=torch.float64)
    latents[forward.pairs.tokens(), forward.pairs.indices] = forward.latents.detach()
    errors = [
        (x - latents[:, :end] @ sae.W_dec[:end] - sae.b_dec).square().sum(1).mean().item()
        for end in (4, 16)
    ]
    assert total == pytest.approx(sum(errors))
