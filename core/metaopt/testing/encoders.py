"""The checks of an encoder. Each takes the class, and where it fails says the law and the remedy."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.nn import Encoder
from metaopt.plugins import violations
from metaopt.testing.setting import Skipped, corners
from metaopt.tune import declared

SHAPES = ((6,), (1, 28, 28), (3, 32, 32))


def obeys_the_contract(cls: type[Encoder]) -> None:
    """Name, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, Encoder))
    assert not problems, "; ".join(problems)


def features_have_their_shape(cls: type[Encoder]) -> None:
    """`forward` gives (n, n_features), and `maps`, where there is a grid, (n, *map_shape)."""
    for config in ({}, *corners(cls.Config)):
        for encoder, x in _built(cls, config):
            got = tuple(encoder(x).shape)
            want = (len(x), encoder.n_features)
            assert got == want, (
                f"forward gave features of shape {got}; it must be (n, n_features) = {want} with {config}"
            )
            if encoder.map_shape is not None:
                grid = tuple(encoder.maps(x).shape)
                assert grid == (len(x), *encoder.map_shape), f"maps gave shape {grid}, not (n, *{encoder.map_shape})"


def features_are_finite(cls: type[Encoder]) -> None:
    """Features are finite at both ends of every range and at every option."""
    for config in ({}, *corners(cls.Config)):
        for encoder, x in _built(cls, config):
            assert encoder(x).isfinite().all(), f"features are not finite with {config}; narrow that range"


def encodes_each_example_by_itself(cls: type[Encoder]) -> None:
    """An example's features do not depend on the others, unless an option is declared transductive."""
    banned = {name: getattr(parameter, "transductive", ()) for name, parameter in declared(cls.Config).items()}
    for config in ({}, *corners(cls.Config)):
        if any(value in banned[name] for name, value in config.items()):
            continue
        for encoder, x in _built(cls, config):
            for training in (True, False):
                encoder.train(training)
                alone = torch.cat([encoder(example[None]) for example in x])
                assert torch.allclose(alone, encoder(x), rtol=1e-6, atol=1e-8), (
                    f"an example's features depend on the others with {config}; declare that option transductive in "
                    "tune.choice, or normalise each example by itself"
                )


def gradients_reach_every_parameter(cls: type[Encoder]) -> None:
    """The gradient of the features' square reaches each parameter."""
    for encoder, x in _built(cls, {}):
        parameters = dict(encoder.named_parameters())
        if not parameters:
            raise Skipped("it has no parameters")
        encoder(x).square().sum().backward()
        still = [name for name, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()]
        assert not still, f"no gradient reaches {', '.join(still)}; use it, or make it no parameter"


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    features_have_their_shape,
    features_are_finite,
    encodes_each_example_by_itself,
    gradients_reach_every_parameter,
]


def _built(cls: type[Encoder], config: dict[str, Any]) -> Iterator[tuple[Encoder, Tensor]]:
    """Yield the encoder in float64 for each shape of examples that suits it, with examples."""
    refusals = []
    for shape in SHAPES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                encoder = cls(shape, cls.Config(**config)).double()
            except UserError as error:
                refusals.append(str(error))
                continue
        yield encoder, torch.randn(3, *shape, generator=Generator().manual_seed(0), dtype=torch.float64)
    assert len(refusals) < len(SHAPES), f"it refuses examples of each shape of {SHAPES}: {refusals[0]}"
