"""A seed depends on what it is for and on nothing else."""

import hashlib

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metaopt.seeds import derive, generator

NAME = st.one_of(st.integers(), st.text(st.characters(exclude_characters=":", codec="utf-8")))
"""A colon parts names, so it may not stand in one."""
PURPOSE = st.tuples(st.integers(), st.lists(NAME, max_size=3))


def test_a_seed_is_the_first_63_bits_of_a_hash_that_any_machine_computes_alike() -> None:
    digest = hashlib.blake2b(b"0:trial:7:tasks", digest_size=8).hexdigest()
    bits = f"{int(digest, 16):064b}"
    assert derive(0, "trial", 7, "tasks") == int(bits[:63], 2)


@given(PURPOSE)
@settings(deadline=None)
def test_every_generator_takes_a_seed(purpose: tuple[int, list[str | int]]) -> None:
    seed, names = purpose
    derived = derive(seed, *names)
    assert 0 <= derived < 2**63
    assert generator(seed, *names).initial_seed() == derived


@given(PURPOSE, PURPOSE)
def test_two_purposes_have_two_seeds(a: tuple[int, list[str | int]], b: tuple[int, list[str | int]]) -> None:
    spelt_a, spelt_b = [str(part) for part in (a[0], *a[1])], [str(part) for part in (b[0], *b[1])]
    assume(spelt_a != spelt_b)
    assert derive(a[0], *a[1]) != derive(b[0], *b[1])


def test_each_bit_of_a_seed_is_a_fair_coin() -> None:
    n = 4000
    seeds = torch.tensor([derive(0, "trial", number) for number in range(n)])
    ones = (seeds[:, None] >> torch.arange(63) & 1).double().mean(0)  # (63,)
    z = (ones - 0.5).abs() / (0.5 / n**0.5)
    assert z.max() < 4.5  # of 63 fair coins, by chance once in 2,000 times


def test_neighbouring_seeds_differ_in_half_their_bits() -> None:
    seeds = torch.tensor([derive(seed, "weights") for seed in range(2001)])
    changed = (seeds[1:, None] ^ seeds[:-1, None]) >> torch.arange(63) & 1
    assert abs(changed.double().mean() - 0.5) < 0.01  # its standard error is 0.0014


def test_neighbouring_generators_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(5000, generator=generator(seed, "train")) for seed in range(20)])
    correlation = torch.corrcoef(draws) - torch.eye(20)
    assert correlation.abs().max() < 5 / 5000**0.5


def test_generators_of_one_purpose_draw_alike_and_apart_from_each_other_and_the_global_one() -> None:
    before = torch.get_rng_state()
    first, second = generator(3, "train"), generator(3, "train")
    drawn = torch.rand(4, generator=first)
    assert torch.equal(drawn, torch.rand(4, generator=second))
    assert not torch.equal(drawn, torch.rand(4, generator=generator(3, "probe")))
    assert torch.equal(before, torch.get_rng_state())
