"""The checks of an encoder. Each takes the class, and where it fails says the law and the remedy."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.func import vmap

from metaopt.errors import UserError
from metaopt.executor import trainable
from metaopt.nn import Encoder
from metaopt.plugins import violations
from metaopt.testing.setting import Skipped, corners
from metaopt.tune import declared

SHAPES = ((6,), (1, 16, 16), (3, 16, 24))
LARGE_SHAPES = ((3, 84, 84), (3, 224, 224))
"""For encoders that refuse all the others."""
N_EXAMPLES = 2


def obeys_the_contract(cls: type[Encoder]) -> None:
    """Name, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, Encoder))
    assert not problems, "; ".join(problems)


def features_have_their_shape(cls: type[Encoder]) -> None:
    """`forward` gives (n, n_features), and `maps`, where there is a grid, (n, *map_shape)."""
    for config in corners(cls.Config):
        for encoder, x in _built(cls, config):
            got, want = tuple(encoder(x).shape), (len(x), encoder.n_features)
            assert got == want, (
                f"forward gave features of shape {got}; it must be (n, n_features) = {want} with {config}"
            )
            if encoder.map_shape is not None:
                grid = tuple(encoder.maps(x).shape)
                assert grid == (len(x), *encoder.map_shape), f"maps gave shape {grid}, not (n, *{encoder.map_shape})"


def features_are_finite(cls: type[Encoder]) -> None:
    """Features are finite at both ends of every range and at every option."""
    for config in corners(cls.Config):
        for encoder, x in _built(cls, config):
            assert encoder(x).isfinite().all(), f"features are not finite with {config}; narrow that range"


def encodes_each_example_by_itself(cls: type[Encoder]) -> None:
    """An example's features do not depend on the others, unless an option is declared transductive."""
    banned = {name: getattr(parameter, "transductive", ()) for name, parameter in declared(cls.Config).items()}
    for config in corners(cls.Config):
        if any(value in banned[name] for name, value in config.items()):
            continue
        for encoder, x in _built(cls, config):
            for training in (True, False):
                encoder.train(training)
                alone, together = _features(encoder, x[:1]), _features(encoder, x)[:1]
                # What is random is drawn for each example anew, so that in training it cannot be compared.
                assert _same(alone, together) or (training and _draws(encoder, x)), (
                    f"an example's features depend on the others with {config}; declare that option transductive in "
                    "tune.choice, or normalise each example by itself"
                )


def gradients_reach_every_parameter(cls: type[Encoder]) -> None:
    """The gradient of the features' square reaches each parameter that is not frozen."""
    for encoder, x in _built(cls, {}):
        parameters = trainable(encoder)
        if not parameters:
            raise Skipped("it has no parameters to train")
        torch.autograd.backward(encoder(x).square().sum())
        still = [name for name, parameter in parameters.items() if parameter.grad is None or not parameter.grad.any()]
        assert not still, f"no gradient reaches {', '.join(still)}; use it, or make it no parameter"


def keeps_no_memory(cls: type[Encoder]) -> None:
    """Features are the same whatever was encoded before, and encoding changes no parameter or buffer."""
    for encoder, x in _built(cls, {}):
        for training in (True, False):
            encoder.train(training)
            state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
            before = _features(encoder, x)
            _features(encoder, x + 1)
            assert torch.equal(_features(encoder, x), before), "features change with what was encoded before"
            for name, tensor in encoder.state_dict().items():
                assert torch.equal(tensor, state[name]), (
                    f"encoding wrote to {name}; keep no running statistics (track_running_stats=False)"
                )


def leaves_its_inputs_untouched(cls: type[Encoder]) -> None:
    """`forward` does not write to the examples it is given."""
    for encoder, x in _built(cls, {}):
        before = x.clone()
        _features(encoder, x)
        assert torch.equal(x, before), "forward wrote to its inputs; a layer with inplace=True must not be the first"


def draws_no_random_numbers_at_meta_test(cls: type[Encoder]) -> None:
    """In evaluation the global generator is left alone."""
    for encoder, x in _built(cls, {}):
        assert not _draws(encoder.eval(), x), "it drew random numbers; be deterministic where self.training is False"


def runs_in_float32_and_float64(cls: type[Encoder]) -> None:
    """Features have the dtype of the examples."""
    for encoder, x in _built(cls, {}):
        wide, narrow = _features(encoder, x).dtype, _features(encoder.float(), x.float()).dtype
        assert (wide, narrow) == (torch.float64, torch.float32), (
            f"float64 examples gave {wide} and float32 gave {narrow}; make tensors with the examples' dtype"
        )


def pickles_to_a_worker_process(cls: type[Encoder]) -> None:
    """An encoder can be pickled: its class is importable, and it holds no closures or open files."""
    for encoder, x in _built(cls, {}):
        try:
            copy = pickle.loads(pickle.dumps(encoder))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(
                f"it does not pickle ({error}); define classes at module level, keep no lambdas"
            ) from None
        assert torch.equal(_features(copy, x), _features(encoder, x)), "a pickled encoder gives other features"


def batched_equals_the_loop(cls: type[Encoder]) -> None:
    """Run by `torch.func.vmap` over many tasks, features are those of one task after another."""
    for encoder, x in _built(cls, {}):
        encoder.eval()
        tasks = torch.stack([x, x + 1])
        try:
            batched = vmap(encoder, randomness="different")(tasks)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise AssertionError(
                f"vmap cannot run it ({type(error).__name__}: {first_line}); branch on no tensor's value, write "
                "nothing in place"
            ) from error
        assert _same(batched, torch.stack([encoder(x) for x in tasks])), "features under vmap differ from the loop's"


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    features_have_their_shape,
    features_are_finite,
    encodes_each_example_by_itself,
    gradients_reach_every_parameter,
    keeps_no_memory,
    leaves_its_inputs_untouched,
    draws_no_random_numbers_at_meta_test,
    runs_in_float32_and_float64,
    pickles_to_a_worker_process,
    batched_equals_the_loop,
]


def _built(cls: type[Encoder], config: dict[str, Any]) -> Iterator[tuple[Encoder, Tensor]]:
    """Yield the encoder in float64 for each shape of examples that suits it, with examples."""
    refusals, suited = [], 0
    for shape in SHAPES + LARGE_SHAPES:
        if suited and shape in LARGE_SHAPES:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                encoder = cls(shape, cls.Config(**config)).double()
            except UserError as error:
                refusals.append(str(error))
                continue
        suited += 1
        yield encoder, torch.randn(N_EXAMPLES, *shape, generator=Generator().manual_seed(0), dtype=torch.float64)
    assert suited, f"it refuses examples of each shape of {SHAPES + LARGE_SHAPES}: {refusals[0]}"


def _features(encoder: Encoder, x: Tensor) -> Tensor:
    """Return the features. Whatever is random is the same each time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        features: Tensor = encoder(x)
    return features


def _draws(encoder: Encoder, x: Tensor) -> bool:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        state = torch.random.get_rng_state()
        encoder(x)
        return not torch.equal(torch.random.get_rng_state(), state)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-8)
