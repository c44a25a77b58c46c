"""The checks of a learner. Each takes the class, and where it fails says the law and the remedy."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.executor import Executor, Loop, Vmap, trainable
from metaopt.learner import Gradients, Learner
from metaopt.plugins import violations
from metaopt.task import TaskBatch
from metaopt.testing.setting import Setting, Skipped, corners, settings
from metaopt.train import Outer


def obeys_the_contract(cls: type[Learner]) -> None:
    """Name, kinds, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, Learner))
    assert not problems, "; ".join(problems)


def predictions_have_their_shape(cls: type[Learner]) -> None:
    """`forward` returns floating-point numbers of shape (n_queries, n_outputs), in training and after it."""
    for setting in settings(cls):
        for training in (True, False):
            predictions = _predict(setting.build().train(training), setting.tasks())
            want = (setting.spec.n_way * setting.spec.n_query, setting.spec.n_outputs)
            got = tuple(predictions.shape)
            assert got == want, (
                f"forward returned predictions of shape {got}; it must return (n_queries, n_outputs) = {want}"
            )
            assert predictions.is_floating_point(), f"forward returned {predictions.dtype}; return scores, not labels"


def is_finite_at_both_ends_of_every_range(cls: type[Learner]) -> None:
    """Predictions are finite at the defaults, at both ends of every range and at every option."""
    for setting in settings(cls):
        for config in ({}, *corners(cls.Config)):
            for training in (True, False):
                predictions = _predict(setting.build(**config).train(training), setting.tasks(1))
                assert predictions.isfinite().all(), (
                    f"predictions for {_name(setting)} are not finite with {config}; narrow that range or guard the "
                    "computation"
                )


def gradients_reach_every_parameter(cls: type[Learner]) -> None:
    """Some outer step moves each parameter; one that nothing moves should not be a parameter."""
    _needs_training(cls)
    for setting in settings(cls):
        moved: set[str] = set()
        for config in ({}, *corners(cls.Config)):
            learner = setting.build(**config).train()
            for seed in range(3):
                for gradients in _outer_step(learner, setting, seed):
                    moved.update(_nonzero(gradients))
        still = trainable(setting.build()).keys() - moved
        assert not still, (
            f"no gradient reaches {', '.join(sorted(still))} on {_name(setting)}; use it, or make it no parameter"
        )


def keeps_no_memory_between_tasks(cls: type[Learner]) -> None:
    """A task's predictions are the same whatever tasks came before, and `forward` changes no parameter or buffer."""
    for setting in settings(cls):
        for training in (True, False):
            learner, tasks = setting.build().train(training), setting.tasks()
            state = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
            before = _predict(learner, tasks, 0)
            _predict(learner, tasks, 1)
            _same(_predict(learner, tasks, 0), before, "a task is predicted otherwise after another one was learned; "
                  "keep nothing between tasks", exactly=True)  # fmt: skip
            for name, tensor in learner.state_dict().items():
                _same(tensor, state[name], f"forward wrote to {name}; adapt a dict of weights instead", exactly=True)


def leaves_its_inputs_untouched(cls: type[Learner]) -> None:
    """`forward` does not write to the tensors it is given."""
    for setting in settings(cls):
        tasks = setting.tasks()
        copy = [tensor.clone() for tensor in tasks.tensors()]
        for training in (True, False):
            _predict(setting.build().train(training), tasks)
        for tensor, before in zip(tasks.tensors(), copy, strict=True):
            _same(tensor, before, "forward wrote to its inputs; work on copies", exactly=True)


def ignores_the_order_of_the_support_set(cls: type[Learner]) -> None:
    """Predictions do not depend on the order of the support set, unless `order_matters` says so."""
    if cls.order_matters:
        raise Skipped("it declares order_matters")
    for setting in settings(cls):
        learner, (support_x, support_y, query_x, _) = setting.build().eval(), _task(setting.tasks())
        order = torch.randperm(len(support_x), generator=Generator().manual_seed(0))
        _same(
            learner(support_x[order], support_y[order], query_x),
            learner(support_x, support_y, query_x),
            "predictions change with the order of the support set; sum or average over it, or set order_matters = True",
        )


def predicts_each_query_by_itself(cls: type[Learner]) -> None:
    """The prediction for a query does not depend on the other queries, unless `transductive` says so."""
    if cls.transductive:
        raise Skipped("it declares itself transductive")
    for setting in settings(cls):
        learner, (support_x, support_y, query_x, _) = setting.build().eval(), _task(setting.tasks())
        together = learner(support_x, support_y, query_x)
        alone = torch.cat([learner(support_x, support_y, query[None]) for query in query_x])
        _same(alone, together, "the prediction for a query depends on the other queries (batch statistics, or "
              "attention over them?); mend that, or set transductive = True")  # fmt: skip


def does_not_care_for_query_order(cls: type[Learner]) -> None:
    """Each query's prediction stands in its own row."""
    for setting in settings(cls):
        learner, (support_x, support_y, query_x, _) = setting.build().eval(), _task(setting.tasks())
        order = torch.randperm(len(query_x), generator=Generator().manual_seed(0))
        _same(
            learner(support_x, support_y, query_x[order]),
            learner(support_x, support_y, query_x)[order],
            "permuting the queries does not permute their predictions; keep row i for query i",
        )


def works_without_gradients(cls: type[Learner]) -> None:
    """Under `torch.no_grad()`, as at meta-test, predictions are the same; adaptation turns gradients on for itself."""
    for setting in settings(cls):
        learner, tasks = setting.build().eval(), setting.tasks()
        with torch.no_grad():
            without = _predict(learner, tasks)
        _same(without, _predict(learner, tasks), "predictions change under no_grad; adapt with torch.func.grad")


def is_reproducible_from_a_seed(cls: type[Learner]) -> None:
    """The same seed and the same batches give the same parameters, bit for bit."""
    for setting in settings(cls):
        runs = []
        for _ in range(2):
            learner = setting.build(seed=3).train()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                _train(learner, setting, 3)
            runs.append(learner.state_dict())
        for name, tensor in runs[0].items():
            _same(runs[1][name], tensor, f"two runs from one seed differ in {name}; draw from torch's own generator, "
                  "which the core seeds, and from nowhere else", exactly=True)  # fmt: skip


def draws_no_random_numbers_at_meta_test(cls: type[Learner]) -> None:
    """Predictions at meta-test are the same twice, and the global generator is left alone."""
    for setting in settings(cls):
        learner, tasks = setting.build().eval(), setting.tasks()
        state = torch.random.get_rng_state()
        first = _predict(learner, tasks)
        assert torch.equal(torch.random.get_rng_state(), state), (
            "forward drew from the global generator at meta-test; be deterministic where self.training is False"
        )
        _same(_predict(learner, tasks), first, "two predictions of one task differ at meta-test", exactly=True)


def runs_in_float32_and_float64(cls: type[Learner]) -> None:
    """Predictions have the dtype of the inputs, and agree in both."""
    for setting in settings(cls):
        learner, tasks = setting.build().eval(), setting.tasks(1)
        wide = _predict(learner, tasks)
        narrow = _predict(learner.float(), _cast(tasks, torch.float32))
        assert (wide.dtype, narrow.dtype) == (torch.float64, torch.float32), (
            f"float64 inputs gave {wide.dtype} and float32 gave {narrow.dtype}; make tensors with the inputs' dtype"
        )
        _same(narrow.double(), wide, "float32 and float64 disagree; look for a cancellation", rtol=0.05, atol=0.02)


def survives_a_state_dict_round_trip(cls: type[Learner]) -> None:
    """A fresh learner with the trained one's state_dict predicts the same."""
    for setting in settings(cls):
        learner = setting.build().train()
        _train(learner, setting, 2)
        other = setting.build(seed=9)
        other.load_state_dict(learner.state_dict())
        tasks = setting.tasks(seed=5)
        _same(_predict(other.eval(), tasks), _predict(learner.eval(), tasks),
              "a learner loaded from its state_dict predicts otherwise; keep all it learned in parameters and "
              "registered buffers", exactly=True)  # fmt: skip


def pickles_to_a_worker_process(cls: type[Learner]) -> None:
    """A learner and its Config can be pickled: both are importable, and hold no closures or open files."""
    for setting in settings(cls):
        try:
            learner = pickle.loads(pickle.dumps(setting.build().eval()))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(
                f"it does not pickle ({error}); define classes at module level, keep no lambdas"
            ) from None
        _same(_predict(learner, setting.tasks()), _predict(setting.build().eval(), setting.tasks()),
              "a pickled learner predicts otherwise", exactly=True)  # fmt: skip


def batched_equals_the_loop(cls: type[Learner]) -> None:
    """Run over many tasks at once, predictions and gradients are those of one task after another."""
    if not cls.batchable:
        raise Skipped("it declares that it is not batchable")
    for setting in settings(cls):
        tasks = setting.tasks()
        for training in (True, False):
            learner = setting.build().train(training)
            loop, batched = (run.map(learner, "forward", *tasks.tensors()[:3]) for run in (Loop(), Vmap()))
            _same(batched, loop, "predictions under vmap differ from the loop's; write nothing in place")
        if cls.trains_on == "tasks":
            loop_steps, batched_steps = (
                _outer_step(setting.build().train(), setting, 0, run()) for run in (Loop, Vmap)
            )
            for loop_step, batched_step in zip(loop_steps, batched_steps, strict=True):
                for name, gradient in loop_step.items():
                    _same(batched_step[name], gradient, f"the gradient of {name} under vmap differs from the loop's")


def trains_more_ways_than_it_is_used_with(cls: type[Learner]) -> None:
    """A learner that says `any_way` predicts tasks of another number of ways than it was built for."""
    if not cls.any_way:
        raise Skipped("it does not declare any_way")
    for setting in settings(cls):
        fewer = replace(setting.spec, n_way=2)
        tasks = Setting(cls, fewer).tasks()
        predictions = _predict(setting.build().eval().with_spec(fewer), tasks)
        assert predictions.shape[1] == 2, (
            f"built for {setting.spec.n_way} ways and used with 2 it gave {predictions.shape[1]} scores a query; read "
            "self.spec.n_way in forward, or set any_way = False"
        )


def learns_a_separable_task(cls: type[Learner]) -> None:
    """After a few hundred easy tasks it does clearly better than guessing."""
    for setting in settings(cls):
        learner = setting.build().train()
        _train(learner, setting, 60)
        learner.eval()
        tasks = setting.tasks(20, seed=1000)
        with torch.no_grad():
            predictions = Loop().map(learner, "forward", *tasks.tensors()[:3])
        assert isinstance(predictions, Tensor)
        if setting.spec.kind == "regression":
            error = float((predictions - tasks.query_y).square().mean() / tasks.query_y.square().mean())
            assert error < 0.95, (
                f"its squared error on linear tasks is {error:.2f} of that of predicting 0; does it adapt?"
            )
        else:
            accuracy = float((predictions.argmax(-1) == tasks.query_y).double().mean())
            assert accuracy > 0.6, f"its accuracy on 3 well-separated classes is {accuracy:.2f}; does it learn?"


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    predictions_have_their_shape,
    is_finite_at_both_ends_of_every_range,
    gradients_reach_every_parameter,
    keeps_no_memory_between_tasks,
    leaves_its_inputs_untouched,
    ignores_the_order_of_the_support_set,
    predicts_each_query_by_itself,
    does_not_care_for_query_order,
    works_without_gradients,
    is_reproducible_from_a_seed,
    draws_no_random_numbers_at_meta_test,
    runs_in_float32_and_float64,
    survives_a_state_dict_round_trip,
    pickles_to_a_worker_process,
    batched_equals_the_loop,
    trains_more_ways_than_it_is_used_with,
    learns_a_separable_task,
]


def _task(tasks: TaskBatch, index: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    support_x, support_y, query_x, query_y = (tensor[index] for tensor in tasks.tensors())
    return support_x, support_y, query_x, query_y


def _predict(learner: Learner, tasks: TaskBatch, index: int = 0) -> Tensor:
    support_x, support_y, query_x, _ = _task(tasks, index)
    predictions: Tensor = learner(support_x, support_y, query_x)
    return predictions.detach()


def _outer_step(learner: Learner, setting: Setting, seed: int, executor: Executor | None = None) -> list[Gradients]:
    """Return what an outer step hands to the optimiser."""
    handed: list[Gradients] = []
    learner.outer_step(setting.batch(seed), executor or Loop(), lambda gradients: handed.append(dict(gradients)))
    return handed


def _train(learner: Learner, setting: Setting, steps: int) -> None:
    """Take a few outer steps with the learner's own optimiser."""
    if learner.trains_on == "nothing":
        return
    fields = {
        name.removeprefix("outer."): value for name, value in learner.defaults.items() if name.startswith("outer.")
    }
    outer = Outer(**{"lr": 0.003, **fields})
    parameters = trainable(learner)
    optimizer = outer.build(list(parameters.values()))

    def update(gradients: Gradients) -> None:
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    for step in range(steps):
        learner.progress = step / steps
        learner.outer_step(setting.batch(step), Loop(), update)


def _needs_training(cls: type[Learner]) -> None:
    if cls.trains_on == "nothing":
        raise Skipped("it has nothing to train")


def _nonzero(gradients: Gradients) -> list[str]:
    return [name for name, gradient in gradients.items() if bool(gradient.ne(0).any())]


def _cast(tasks: TaskBatch, dtype: torch.dtype) -> TaskBatch:
    return TaskBatch(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tasks.tensors()))


def _name(setting: Setting) -> str:
    return f"{setting.spec.kind} of examples of shape {setting.spec.x_shape}"


def _same(
    got: object, want: object, otherwise: str, *, exactly: bool = False, rtol: float = 1e-6, atol: float = 1e-8
) -> None:
    assert isinstance(got, Tensor)
    assert isinstance(want, Tensor)
    same = torch.equal(got, want) if exactly else got.shape == want.shape and torch.allclose(got, want, rtol, atol)
    assert same, otherwise
