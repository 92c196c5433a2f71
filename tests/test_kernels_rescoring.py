"""bfloat16 candidates settled in float32: exact values, counted misses, and an honest 'auto'."""

import pytest
import torch

from saelab.errors import ConfigError
from saelab.kernels import encode_pairs, rescoring, top_k_pairs
from saelab.kernels.rescoring import FASTER, Bfloat16Selection, bfloat16_speed


def problem(n_tokens=20, d_in=24, d_sae=200):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(n_tokens, d_in, generator=generator),
        torch.randn(d_sae, d_in, generator=generator),
        torch.randn(d_sae, generator=generator),
    )


def as_dense(pairs, values, d_sae):
    dense = torch.zeros(pairs.n_tokens, d_sae)
    dense[pairs.tokens(), pairs.indices] = values
    return dense


@pytest.mark.parametrize("signed", [False, True])
def test_enough_candidates_give_the_float32_selection_and_values(signed):
    x, rows, bias = problem()
    selection = Bfloat16Selection("on")
    ((pairs, values),) = selection.encode(x, rows, bias, 8, signed=signed)
    ((expected, exact),) = encode_pairs(x, rows, bias, [lambda z: top_k_pairs(z, 8, signed)])
    torch.testing.assert_close(as_dense(pairs, values, 200), as_dense(expected, exact, 200))
    assert pairs.offsets.tolist() == expected.offsets.tolist()
    assert (selection.checked_pairs, selection.missed_pairs) == (20 * 8, 0)


def test_all_latents_as_candidates_are_allowed():
    x, rows, bias = problem(d_sae=10)
    ((pairs, values),) = Bfloat16Selection("on").encode(x, rows, bias, 8)
    ((expected, exact),) = encode_pairs(x, rows, bias, [lambda z: top_k_pairs(z, 8)])
    torch.testing.assert_close(as_dense(pairs, values, 10), as_dense(expected, exact, 10))


def test_misses_without_a_margin_are_counted():
    # Latents 0 and 1 differ by less than bfloat16 can tell; latent 1 is the larger one.
    x = torch.tensor([[1.0, 1.0]]).repeat(4, 1)
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [0.1, 0.0]])
    counts = []
    for margin in (0, 1):
        selection = Bfloat16Selection("on", margin=margin)
        ((pairs, _),) = selection.encode(x, rows, torch.zeros(3), 1)
        missed = int((pairs.indices != 1).sum())
        assert (selection.checked_pairs, selection.missed_pairs) == (4, missed)
        counts.append(selection.missed_share)
    assert counts[1] == 0.0
    selection = Bfloat16Selection("on", margin=0)
    flipped = rows[[1, 0, 2]]  # one of the two orders must be wrong without a margin
    selection.encode(x, flipped, torch.zeros(3), 1)
    assert counts[0] + selection.missed_share == 1.0


def test_checks_come_every_so_many_calls_and_on_some_rows():
    x, rows, bias = problem()
    selection = Bfloat16Selection("on", check_every=3, check_rows=5)
    for _ in range(4):
        selection.encode(x, rows, bias, 8)
    assert selection.checked_pairs == 2 * 5 * 8
    silent = Bfloat16Selection("on", check_every=0)
    silent.encode(x, rows, bias, 8)
    assert silent.checked_pairs == 0 and silent.missed_share == 0.0


def test_extra_selections_get_exact_values():
    x, rows, bias = problem()

    def dead(pre_acts):
        row, latent = (pre_acts[:, :20] > 0).nonzero(as_tuple=True)
        return row, latent, pre_acts[row, latent]

    _, (pairs, values) = Bfloat16Selection("on").encode(x, rows, bias, 8, extra=[dead])
    exact = (x @ rows.T + bias)[pairs.tokens(), pairs.indices]
    assert pairs.n_pairs > 100
    torch.testing.assert_close(values, exact)


def test_nothing_to_encode_gives_nothing():
    _, rows, bias = problem()
    ((pairs, values),) = Bfloat16Selection("on").encode(torch.empty(0, 24), rows, bias, 8)
    assert pairs.n_tokens == 0 and len(values) == 0


def test_auto_follows_the_measurement(monkeypatch):
    speed = bfloat16_speed("cpu")
    assert speed > 0
    assert Bfloat16Selection("auto").enabled == (speed >= FASTER)
    for measured, enabled in ((FASTER * 2, True), (FASTER / 2, False)):
        monkeypatch.setattr(rescoring, "bfloat16_speed", lambda _, measured=measured: measured)
        assert Bfloat16Selection("auto").enabled == enabled
        assert Bfloat16Selection("on").enabled and not Bfloat16Selection("off").enabled


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="use 'auto', 'on' or 'off'"):
        Bfloat16Selection("yes")
    with pytest.raises(ConfigError, match="are counts"):
        Bfloat16Selection("on", margin=-1)
