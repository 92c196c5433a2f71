"""Which edges there are, by counting, and which of them lead anywhere."""

import pytest
import torch

from saelab.errors import ConfigError
from saelab.patching import ComponentGraph, Edge

GROUPED = ComponentGraph(n_layers=2, n_heads=4, n_key_heads=2)


def test_a_receiver_reads_all_that_comes_before_it() -> None:
    # Block 0: 4 queries, 2 keys and 2 values read embed; its MLP reads embed and 4 heads.
    # Block 1 reads 6 senders and its MLP 10; the logits read all 11.
    assert len(GROUPED.edges()) == 8 * 1 + 5 + 8 * 6 + 10 + 11
    edges = set(GROUPED.edges())
    assert Edge("a0.h3", "m0") in edges
    assert Edge("m0", "a1.k1") in edges
    assert Edge("a1.h0", "a1.q0") not in edges
    assert Edge("m1", "m1") not in edges


def test_in_a_parallel_block_the_mlp_does_not_read_the_heads_beside_it() -> None:
    parallel = ComponentGraph(n_layers=2, n_heads=4, n_key_heads=4, parallel=True)
    assert Edge("a0.h3", "m0") not in parallel.edges()
    assert Edge("a0.h3", "m1") in parallel.edges()


def test_without_mlps_no_edge_starts_or_ends_at_one() -> None:
    bare = ComponentGraph(n_layers=2, n_heads=2, n_key_heads=2, mlps=False)
    assert not [e for e in bare.edges() if "m" in e.sender[0] or e.receiver[0] == "m"]
    assert bare.nodes == ("a0.h0", "a0.h1", "a1.h0", "a1.h1")


def test_heads_that_share_a_key_read_through_one_receiver() -> None:
    names = GROUPED.receivers
    for head, key in enumerate((0, 0, 1, 1)):
        sender = GROUPED.senders.index(f"a1.h{head}")
        found = [names[at] for at in GROUPED.readers(sender)]
        assert found == [f"a1.q{head}", f"a1.k{key}", f"a1.v{key}"]


def test_edges_and_masks_are_the_same_thing() -> None:
    edges = GROUPED.edges()[::7]
    assert GROUPED.edges(GROUPED.mask(edges)) == edges
    assert GROUPED.nodes_of(GROUPED.mask([Edge("a1.h2", "logits"), Edge("embed", "m0")])) == [
        "a1.h2"
    ]


def test_edges_on_no_path_are_dropped_and_dropping_again_drops_nothing() -> None:
    path = [Edge("embed", "a0.v0"), Edge("a0.h1", "a1.k1"), Edge("a1.h3", "logits")]
    loose = [Edge("m0", "logits"), Edge("embed", "a1.q0"), Edge("a0.h3", "a1.k0")]
    kept = GROUPED.connected(GROUPED.mask([*path, *loose]))
    # a0.v0 feeds heads 0 and 1 of block 0, and a1.k1 heads 2 and 3 of block 1.
    assert set(GROUPED.edges(kept)) == set(path)
    assert torch.equal(GROUPED.connected(kept), kept)
    whole = GROUPED.allowed()
    assert torch.equal(GROUPED.connected(whole), whole)


@pytest.mark.parametrize(
    "edge", [("a1.h0", "a0.q0"), ("a0.h9", "logits"), ("embed", "a0.k3"), ("m0", "m0")]
)
def test_an_edge_that_does_not_exist_is_refused(edge: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"no edge {edge[0]}->{edge[1]}"):
        GROUPED.mask([Edge(*edge)])


def test_a_misspelt_component_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'a0\.h1'"):
        GROUPED.node_mask(["a0.h11"])
    with pytest.raises(ConfigError, match="multiple of key heads"):
        ComponentGraph(n_layers=1, n_heads=3, n_key_heads=2)
