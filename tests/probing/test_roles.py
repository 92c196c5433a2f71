"""A zoo of planted neurons: every one is called what it is."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from saelab.errors import ConfigError, DataError, ShapeError
from saelab.probing.firings import Firings
from saelab.probing.roles import RoleConfig, find_roles, positional_information
from saelab.sparse_codes import SparseCodes

ROWS, LENGTH, VOCABULARY = 120, 129, 60
NAMES = (
    "never", "one token", "two tokens at 95 %", "two tokens at 90 %", "a bigram",
    "early positions", "odd positions", "one in twenty", "six tokens", "a token and noise",
    "three times",
)  # fmt: skip


def _zoo() -> tuple[SparseCodes, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, VOCABULARY, (ROWS, LENGTH), generator=generator)
    ids[:, 0] = 0
    # tokens 1 to 4 occur 200 times each, never before position 1
    places = torch.randperm(ROWS * (LENGTH - 1), generator=generator)[:800].reshape(4, 200)
    flat = ids[:, 1:].flatten()
    for token, some in enumerate(places, start=1):
        flat[some] = token
    ids[:, 1:] = flat.reshape(ROWS, LENGTH - 1)
    fires = torch.zeros(ROWS, LENGTH, len(NAMES))
    fires[..., 1] = ids == 1
    for unit, share in ((2, 0.95), (3, 0.90)):
        for token in (2, 3):
            rows, positions = (ids == token).nonzero(as_tuple=True)
            n = round(share * len(rows))
            fires[rows[:n], positions[:n], unit] = -1.0  # the sign does not matter
    fires[:, 1:, 4] = ((ids[:, 1:] == 11) & (ids[:, :-1] == 12)).float()
    fires[..., 5] = (torch.arange(LENGTH) < 100).float()
    fires[..., 6] = (torch.arange(LENGTH) % 2).float()
    fires[..., 7] = (torch.rand(ROWS, LENGTH, generator=generator) < 0.05).float()
    fires[..., 8] = ((ids >= 20) & (ids < 26)).float()
    fires[..., 9] = (ids == 1) | (torch.rand(ROWS, LENGTH, generator=generator) < 0.002)
    fires[5, [7, 8, 9], 10] = 1.0
    counts = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    counts[:, 0] = False
    return SparseCodes.from_dense(fires[counts]), ids, counts


def _firings() -> Firings:
    return Firings.of_rows(*_zoo())


CONFIG = RoleConfig(min_seen=3, min_fires=4)


def test_every_neuron_of_the_zoo_is_called_what_it_is() -> None:
    found = find_roles(_firings(), CONFIG)
    roles = dict(zip(NAMES, (one.role for one in found.units), strict=True))
    assert roles == {
        "never": "dead",
        "one token": "token",
        "two tokens at 95 %": "token",  # exactly 95 % is enough
        "two tokens at 90 %": "other",
        "a bigram": "bigram",
        "early positions": "positional",
        "odd positions": "positional",
        "one in twenty": "other",
        "six tokens": "other",  # five is the most
        "a token and noise": "other",  # recall alone is not enough
        "three times": "rare",
    }
    assert found.n_tokens == ROWS * (LENGTH - 1)
    assert found.counts()["token"] == 2 and len(found.having("positional")) == 2


def test_detectors_name_their_triggers_and_positional_neurons_their_pattern() -> None:
    units = find_roles(_firings(), CONFIG).units
    assert units[1].triggers == ((1,),)
    assert set(units[2].triggers) == {(2,), (3,)}
    assert units[4].triggers == ((12, 11),)
    assert (units[1].n_covering, units[2].n_covering, units[8].n_covering) == (1, 2, 6)
    assert units[5].pattern == "both extremes" and units[6].pattern == "oscillating"
    assert units[6].information == pytest.approx(math.log(2), abs=0.01)
    share = 99 / 128  # positions 1 to 99 of 1 to 128
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert units[5].information == pytest.approx(entropy, abs=0.01)
    assert abs(units[7].information) < 0.01 and units[7].pattern == ""


def test_tokens_seen_too_rarely_are_not_called_covered() -> None:
    few = find_roles(_firings(), RoleConfig(min_seen=201, min_fires=4))
    assert few.units[1].role == "other"
    assert find_roles(_firings(), RoleConfig(min_seen=200, min_fires=4)).units[1].role == "token"


def test_a_detector_that_lowers_its_trigger_is_a_suppressor() -> None:
    asked = []

    def effects(units: Sequence[int]) -> torch.Tensor:
        asked.extend(units)
        rows = torch.zeros(len(units), VOCABULARY)
        for row, unit in enumerate(units):
            rows[row, 1] = -2.0  # token 1, the trigger of unit 1
            rows[row, 2:4] = torch.tensor([3.0, 1.0])
            rows[row, 11] = -1.0 if unit == 4 else 0.0
        return rows

    found = find_roles(_firings(), CONFIG, effects)
    assert sorted(asked) == [1, 2, 4]  # detectors only
    assert [one.unit for one in found.suppressors] == [1, 4]
    assert found.units[1].trigger_effect == -2.0
    assert found.units[2].trigger_effect == 2.0
    assert found.units[7].trigger_effect is None and not found.units[7].suppresses


def test_position_0_and_dropped_tokens_never_count() -> None:
    codes, ids, counts = _zoo()
    counts[:, 0] = True  # dropped anyway
    assert Firings.of_rows(codes, ids, counts).n_tokens == codes.n_tokens
    firings = _firings()
    assert 0 not in firings.ids and 0 not in firings.position


def test_n_grams_stop_at_documents_rows_and_gaps() -> None:
    ids = torch.tensor([[9, 1, 2, 3, 4], [9, 5, 6, 7, 8]])
    counts = torch.tensor([[False, True, True, True, True], [False, True, False, True, True]])
    document = torch.tensor([[0, 0, 0, 1, 1], [2, 2, 2, 2, 2]])
    codes = SparseCodes.from_dense(torch.ones(7, 1))
    grams = Firings.of_rows(codes, ids, counts, document).grams(2)
    assert sorted(map(tuple, grams.tokens.tolist())) == [(1, 2), (3, 4), (7, 8)]
    assert grams.fires.tolist() == grams.seen.tolist() == [1, 1, 1]


def test_counts_of_grams_are_those_of_a_double_loop() -> None:
    firings = _firings()
    grams = firings.grams(1)
    dense = firings.codes.dense() != 0
    for unit in range(len(NAMES)):
        mine = {
            int(grams.tokens[g, 0]): (int(f), int(s))
            for u, g, f, s in zip(grams.unit, grams.gram, grams.fires, grams.seen, strict=True)
            if u == unit
        }
        for token in range(VOCABULARY):
            here = firings.ids == token
            wanted = int(dense[here, unit].sum())
            assert mine.get(token, (0, 0))[0] == wanted
            if wanted:
                assert mine[token][1] == int(here.sum())


def test_information_has_its_known_values() -> None:
    seen = np.full(2048, 50)
    position = np.arange(2048)
    fires = np.stack(
        [
            50 * (position < 1024),
            50 * (position < 205),
            50 * (position < 8),
            np.full(2048, 10),
            np.zeros(2048, int),
        ]
    )
    found = positional_information(fires, seen)
    assert found[0] == pytest.approx(math.log(2))
    assert found[1] == pytest.approx(0.325, abs=0.001)
    assert found[2] == pytest.approx(0.026, abs=0.001)  # below 0.05: so short a range is missed
    assert found[3] == pytest.approx(0, abs=1e-12) and found[4] == 0
    rate = fires.mean(1) / 50
    with np.errstate(all="ignore"):
        entropy = np.nan_to_num(-rate * np.log(rate)) + np.nan_to_num(-(1 - rate) * np.log1p(-rate))
    assert (found <= entropy + 1e-9).all()


def test_few_rows_do_not_make_noise_positional() -> None:
    generator = torch.Generator().manual_seed(1)
    fires = (torch.rand(6, 200, 5, generator=generator) < 0.5).float()
    ids = torch.randint(1, 50, (6, 201), generator=generator)
    counts = torch.ones(6, 201, dtype=torch.bool)
    firings = Firings.of_rows(SparseCodes.from_dense(fires.flatten(0, 1)), ids, counts)
    config = RoleConfig(min_rows=1)
    raw = positional_information(*firings.by_position())
    assert raw.min() > 0.05  # six tokens a position look like information
    found = find_roles(firings, config)
    assert max(abs(one.information) for one in found.units) < 0.03
    assert found.counts()["other"] == 5


def test_unusable_input_is_refused() -> None:
    codes, ids, counts = _zoo()
    with pytest.raises(ShapeError, match="rows of codes"):
        Firings.of_rows(codes[:5], ids, counts)
    with pytest.raises(DataError, match="No token counts"):
        Firings.of_rows(codes[:0], ids, torch.zeros_like(counts))
    with pytest.raises(ConfigError, match="share in"):
        RoleConfig(share=1.5)
