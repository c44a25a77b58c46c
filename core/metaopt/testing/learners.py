"""The checks of a learner. Each takes the class, and where it fails says the law and the remedy."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Generator, Tensor

from metaopt.errors import unknown
from metaopt.executor import RECORD_AFTER, Executor, Loop, Traced, Vmap, trainable
from metaopt.learner import Gradients, Learner
from metaopt.plugins import violations
from metaopt.task import Examples, TaskBatch, TaskSpec, presentations
from metaopt.testing.setting import Setting, Skipped, corners, options, random_states, settings
from metaopt.train import Outer, predictions_of
from metaopt.tune import declared

LEARNING = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256))
"""Stages of meta-training, from one outer step to another, after each of which a learner may show what it has learned.

Most need the first only, which keeps the check fast."""


def obeys_the_contract(cls: type[Learner]) -> None:
    """Name, kinds, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(cls, Learner))
    assert not problems, "; ".join(problems)


def its_defaults_exist(cls: type[Learner]) -> None:
    """Its defaults for the outer loop are parameters that the outer loop has, inside their ranges."""
    parameters = declared(Outer)
    for name, value in cls.defaults.items():
        owner, _, field = name.partition(".")
        if owner == "outer":
            assert field in parameters, f"defaults: {unknown('parameter of the outer loop', field, parameters)}"
            try:
                parameters[field].check(value)  # type: ignore[union-attr]  # none of them is Fixed
            except ValueError as error:
                raise AssertionError(f"defaults: {name}: {error}") from None


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
    """Predictions and gradients are finite at the defaults, at both ends of every range and at every option."""
    for setting in settings(cls):
        for config in corners(cls.Config):
            learner = setting.build(**config)
            numbers = {"predictions": [_predict(learner.eval(), setting.tasks(1))]}
            if cls.trains_on != "nothing":
                numbers["gradients"] = [g for step in _gradients(learner, setting.batch(1)) for g in step.values()]
            for what, tensors in numbers.items():
                assert all(tensor.isfinite().all() for tensor in tensors), (
                    f"{what} for {_name(setting)} are not finite with {config or 'the defaults'}; narrow that range "
                    "or guard the computation"
                )


def gradients_reach_every_parameter(cls: type[Learner]) -> None:
    """Some outer step moves each parameter, with some option; one that nothing moves should not be a parameter."""
    _needs_training(cls)
    for setting in settings(cls):
        seen: set[str] = set()
        moved: set[str] = set()
        for config in corners(cls.Config):
            learner = setting.build(**config)
            seen |= trainable(learner).keys()
            for seed in range(3):
                if not seen <= moved:
                    learner.progress = seed / 3
                    for step in _gradients(learner, setting.batch(seed=seed)):
                        moved |= {name for name, gradient in step.items() if gradient.ne(0).any()}
        still = ", ".join(sorted(seen - moved))
        assert not still, f"no gradient reaches {still} on {_name(setting)}; use it, or make it no parameter"


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
        before = [tensor.clone() for tensor in tasks.tensors()]
        for training in (True, False):
            _predict(setting.build().train(training), tasks)
        for tensor, was in zip(tasks.tensors(), before, strict=True):
            _same(tensor, was, "forward wrote to its inputs; work on copies", exactly=True)


def ignores_the_order_of_the_support_set(cls: type[Learner]) -> None:
    """With no option do predictions depend on the order of the support set, unless `order_matters` says so."""
    if cls.order_matters:
        raise Skipped("it declares order_matters")
    for setting in settings(cls):
        support_x, support_y, query_x, _ = _task(setting.tasks())
        order = torch.randperm(len(support_x), generator=Generator().manual_seed(0))
        for config in options(cls.Config):
            learner = setting.build(**config).eval()
            _same(
                learner(support_x[order], support_y[order], query_x),
                learner(support_x, support_y, query_x),
                f"predictions change with the order of the support set, with {config or 'the defaults'}; sum or "
                "average over it, or set order_matters = True",
            )


def predicts_each_query_by_itself(cls: type[Learner]) -> None:
    """The prediction for a query does not depend on the other queries, unless it or an option is transductive."""
    if cls.transductive:
        raise Skipped("it declares itself transductive")
    banned = {name: getattr(parameter, "transductive", ()) for name, parameter in declared(cls.Config).items()}
    for setting in settings(cls):
        support_x, support_y, query_x, _ = _task(setting.tasks())
        for config in options(cls.Config):
            if any(value in banned[name] for name, value in config.items()):
                continue
            learner = setting.build(**config).eval()
            together = learner(support_x, support_y, query_x)
            for row in (0, -1):
                _same(learner(support_x, support_y, query_x[row][None]), together[row][None],
                      f"the prediction for a query depends on the other queries with {config or 'the defaults'} (batch "
                      "statistics, or attention over them?); mend that, or set transductive = True")  # fmt: skip


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
            learner = setting.build(seed=3)
            _train(learner, setting, range(3))
            runs.append(learner.state_dict())
        for name, tensor in runs[0].items():
            _same(runs[1][name], tensor, f"two runs from one seed differ in {name}; draw from torch's own generator, "
                  "which the core seeds, and from nowhere else", exactly=True)  # fmt: skip


def draws_no_random_numbers_at_meta_test(cls: type[Learner]) -> None:
    """Predictions at meta-test are the same twice, and leave the global generators alone."""
    for setting in settings(cls):
        learner, task = setting.build().eval(), _task(setting.tasks())[:3]
        before = random_states()
        first = learner(*task)
        for name, state in random_states().items():
            assert state == before[name], (
                f"forward drew from {name}'s global generator at meta-test; be deterministic where self.training is "
                "False"
            )
        _same(learner(*task), first, "two predictions of one task differ at meta-test", exactly=True)


def adapts_in_the_steps_that_it_names(cls: type[Learner]) -> None:
    """Where `steps` names a field of its Config, that many steps it takes at meta-test: none, one or more."""
    if cls.steps is None:
        raise Skipped("it names no number of steps")
    fields = declared(cls.Config)
    assert cls.steps in fields, f"steps: {unknown('field of its Config', cls.steps, fields)}"
    for setting in settings(cls):
        learner, tasks = setting.build().eval(), setting.tasks()
        usual = _predict(learner, tasks)
        _same(_predict(learner.with_steps(getattr(learner.config, cls.steps)), tasks), usual, "with_steps changed it")
        none = _predict(learner.with_steps(0), tasks)
        assert none.isfinite().all(), "its predictions after no step are not finite"
        assert none.shape == usual.shape, f"after no step its predictions have shape {tuple(none.shape)}"
        assert not torch.equal(none, usual), (
            f"no step and the usual number of steps predict the same; does forward read config.{cls.steps}?"
        )


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
        learner = setting.build()
        _train(learner, setting, range(2))
        other = setting.build(seed=9)
        other.load_state_dict(learner.state_dict())
        tasks = setting.tasks(seed=5)
        _same(_predict(other.eval(), tasks), _predict(learner.eval(), tasks),
              "a learner loaded from its state_dict predicts otherwise; keep all it learned in parameters and "
              "registered buffers", exactly=True)  # fmt: skip


def goes_on_from_its_tensors(cls: type[Learner]) -> None:
    """A fresh learner with the tensors of one in the midst of meta-training goes on as that one does."""
    _needs_training(cls)
    for setting in settings(cls):
        learner, other = setting.build(), setting.build()
        _train(learner, setting, range(2))
        with torch.no_grad():
            for name, tensor in _tensors(other).items():
                tensor.copy_(_tensors(learner)[name])
        for one in (learner, other):
            _train(one, setting, range(2, 4))
        for name, tensor in _tensors(other).items():
            _same(tensor, _tensors(learner)[name], f"gone on from a checkpoint, {name} becomes another; keep what an "
                  "outer step leaves for the next in parameters and registered buffers", exactly=True)  # fmt: skip


def pickles_to_a_worker_process(cls: type[Learner]) -> None:
    """A learner and its Config can be pickled: both are importable, and hold no closures or open files."""
    for setting in settings(cls):
        learner = setting.build().eval()
        try:
            pickled = pickle.loads(pickle.dumps(learner))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(
                f"it does not pickle ({error}); define classes at module level, keep no lambdas"
            ) from None
        _same(_predict(pickled, setting.tasks()), _predict(learner, setting.tasks()),
              "a pickled learner predicts otherwise", exactly=True)  # fmt: skip


def batched_equals_the_loop(cls: type[Learner]) -> None:
    """Run over many tasks at once, predictions and gradients are those of one task after another, with each option."""
    if not cls.batchable:
        raise Skipped("it declares that it is not batchable")
    for setting in settings(cls):
        tasks = setting.tasks(2)
        specs = [setting.spec, *([replace(setting.spec, stream=True)] if cls.streams() else [])]
        for spec, config in product(specs, options(cls.Config)):
            learner = setting.build(**config).with_spec(spec)
            want = _predicted(Loop(), learner, tasks) | _stepped(Loop(), copy.deepcopy(learner), tasks)
            try:
                got = _predicted(Vmap(), learner, tasks) | _stepped(Vmap(), copy.deepcopy(learner), tasks)
            except Exception as error:
                raise AssertionError(
                    f"run by vmap, {_said(error)}; branch on no tensor's value, or set batchable = False"
                ) from error
            for what, tensor in want.items():
                _same(got[what], tensor, f"{what} by vmap differ from the loop's with {config or 'the defaults'}; "
                      "write nothing in place")  # fmt: skip


def replayed_equals_the_loop(cls: type[Learner]) -> None:
    """Recorded on some tasks and replayed on others, later in meta-training, it gives what the loop gives."""
    if not (cls.batchable and cls.traceable):
        raise Skipped("it declares that it is not batchable, or not traceable")
    setting, *_ = settings(cls)  # vectors where it takes them: by default only those are replayed
    learner, traced = setting.build(), Traced()
    traced.seen = _SeenOften()
    run = _stepped if _stepped(Loop(), copy.deepcopy(learner), setting.tasks(2)) else _predicted
    for seed, progress in enumerate((0.0, 0.9)):
        learner.progress, tasks = progress, setting.tasks(2, seed)
        try:
            got = run(traced, learner, tasks)
        except Exception:  # of any kind: another check says which
            raise Skipped("vmap cannot run it, which batched_equals_the_loop tells") from None
        if not traced.replays:
            raise Skipped("it cannot be recorded, and goes on under vmap")
        for what, tensor in run(Loop(), learner, tasks).items():
            _same(got[what], tensor, f"{what} by replay differ from the loop's; compute the same for all tasks of one "
                  "size, whatever self.progress is, or set traceable = False")  # fmt: skip


def serves_other_shots_and_queries(cls: type[Learner]) -> None:
    """Built for one number of support examples and queries, it predicts tasks with others."""
    for setting in settings(cls):
        other = replace(setting.spec, n_shot=setting.spec.n_shot + 1, n_query=1)
        built = f"built for {setting.spec.n_shot} shots and used with {other.n_shot}"
        remedy = "take sizes from the tensors in forward, not from the spec"
        predictions = _served(setting, other, built, remedy)
        assert len(predictions) == other.n_way, (
            f"{built}, it gave predictions for {len(predictions)} of {other.n_way} queries; {remedy}"
        )


def serves_classes_of_unequal_shots(cls: type[Learner]) -> None:
    """It predicts tasks whose classes have different numbers of support examples, each in its own class."""
    if cls.equal_shots:
        raise Skipped("it declares equal_shots")
    for setting in settings(cls):
        if setting.spec.kind != "classification" or setting.spec.description_shape:
            continue
        remedy = "count each class's own examples in forward, or set equal_shots = True"
        tasks = replace(setting, spec=replace(setting.spec, n_shot=4)).tasks(1)
        all_x, all_y, query_x, _ = _task(tasks)
        # A fresh learner each time: one that remembers tasks is another check's concern.
        equal, flipped = (setting.build().eval()(x, y, query_x) for x, y in _both_ways(all_x, all_y))
        order_matters = not torch.allclose(equal, flipped, 1e-6, 1e-8)  # which another check may forbid
        for shots in ((1, 1, 2), (1, 2, 3)):  # of which one can be cut into three equal parts
            kept = presentations(all_y) <= torch.tensor(shots)[all_y]
            support_x, support_y = all_x[kept], all_y[kept]
            try:
                predictions, flipped = (
                    setting.build().eval()(x, y, query_x) for x, y in _both_ways(support_x, support_y)
                )
            except Exception as error:
                raise AssertionError(f"given {shots} supports of its classes, {_said(error)}; {remedy}") from error
            assert predictions.isfinite().all(), f"given {shots} supports of its classes, it is not finite; {remedy}"
            if not order_matters:
                _same(flipped, predictions, f"given {shots} supports of its classes, predictions change with their "
                      f"order; {remedy}")  # fmt: skip


def predicts_a_stream_as_it_comes(cls: type[Learner]) -> None:
    """Prediction t of a stream does not change with y[t:] or x[t + 1:], and is what `forward` says of x[t]."""
    if not cls.streams():
        raise Skipped("it does not define stream")
    for setting in settings(cls):
        for config in options(cls.Config):
            learner = setting.build(**config).eval()
            x, y, *_ = _task(setting.tasks())
            want = learner.stream(x, y)
            assert want.shape == (len(x), setting.spec.n_outputs), (
                f"stream returned predictions of shape {tuple(want.shape)}; it must return (n, n_outputs) = "
                f"{(len(x), setting.spec.n_outputs)}"
            )
            for t in range(len(x)):
                other_x, other_y = x.clone(), y.clone()
                other_x[t + 1 :] += 1
                other_y[t:] = (y[t:] + 1) % setting.spec.n_way if y.dtype == torch.int64 else y[t:] + 1
                for what, got in (
                    ("labels at t and later", learner.stream(x, other_y)),
                    ("examples after t", learner.stream(other_x, y)),
                ):
                    _same(got[: t + 1], want[: t + 1], f"predictions up to t of a stream change with {what}, here of t "
                          f"= {t}; a label is told one step late, and nothing of what follows")  # fmt: skip
                if t:
                    _same(want[t][None], learner(x[:t], y[:t], x[t][None]), "prediction t of a stream is another than "
                          "forward's of the query x[t] with the support set before it; compute the same")  # fmt: skip


def takes_turns_as_it_learns_tasks(cls: type[Learner]) -> None:
    """With `turns` the loss of a task is the mean over tasks in which other examples are the support set."""
    classes = [setting for setting in settings(cls) if setting.spec.kind == "classification"]
    if not (cls.takes_turns() and classes):
        raise Skipped("it does not define `from_features`")
    for setting in classes:
        learner, each = setting.build().eval(), setting.spec.n_shot + setting.spec.n_query
        support_x, support_y, query_x, query_y = _task(setting.tasks())
        by_class = torch.cat([support_y, query_y]).argsort(stable=True)
        x = torch.cat([support_x, query_x])[by_class].view(setting.spec.n_way, each, *query_x.shape[1:])
        y = torch.cat([support_y, query_y])[by_class].view(setting.spec.n_way, each)
        losses = []
        for first in range(0, each - setting.spec.n_shot + 1, setting.spec.n_shot):
            shown = torch.isin(torch.arange(each), torch.arange(first, first + setting.spec.n_shot))
            task = (part[:, rows].flatten(0, 1) for rows in (shown, ~shown) for part in (x, y))
            losses.append(learner.task_loss(*task))
        learner.turns = True
        _same(learner.task_loss(support_x, support_y, query_x, query_y), torch.stack(losses).mean(),
              f"on {_name(setting)} the loss in turns is not the mean loss of the turns; let `forward` be what "
              "`from_features` says of the encoder's features")  # fmt: skip


def serves_other_ways(cls: type[Learner]) -> None:
    """A learner that says `any_way` predicts tasks of another number of ways than it was built for."""
    if not cls.any_way:
        raise Skipped("it does not declare any_way")
    for setting in settings(cls):
        fewer = replace(setting.spec, n_way=2)
        built = f"built for {setting.spec.n_way} ways and used with 2"
        remedy = "read self.spec.n_way in forward, or set any_way = False"
        if fewer.kind == "classification":
            scores = _served(setting, fewer, built, remedy).shape[1]
            assert scores == 2, f"{built}, it gave {scores} scores a query; {remedy}"


def meta_training_lowers_its_loss(cls: type[Learner]) -> None:
    """The loss falls when outer steps repeat one batch."""
    _needs_training(cls)
    for setting in settings(cls):
        first, *_, last = _train(setting.build(), setting, range(10), on=setting.batch(1, noise=2.0))
        assert last < first, (
            f"ten outer steps on one batch took its loss on {_name(setting)} from {first:.3g} to {last:.3g}; is the "
            "sign of the gradients right?"
        )


def learns_a_separable_task(cls: type[Learner]) -> None:
    """After a few hundred easy tasks at most it does clearly better than guessing."""
    for setting in settings(cls):
        learner = setting.build()
        tasks = setting.tasks(6, seed=1000)
        for start, stop in LEARNING:
            _train(learner, setting, range(start, stop))
            with torch.no_grad():
                predictions = Loop().map(learner.eval(), "forward", *tasks.tensors()[:3])
            assert isinstance(predictions, Tensor)
            good, found = _judged(setting, predictions, tasks.query_y)
            if good:
                break
        assert good, f"{found}; does it learn from the support set?"


CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    its_defaults_exist,
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
    adapts_in_the_steps_that_it_names,
    runs_in_float32_and_float64,
    survives_a_state_dict_round_trip,
    goes_on_from_its_tensors,
    pickles_to_a_worker_process,
    batched_equals_the_loop,
    replayed_equals_the_loop,
    serves_other_shots_and_queries,
    serves_classes_of_unequal_shots,
    predicts_a_stream_as_it_comes,
    takes_turns_as_it_learns_tasks,
    serves_other_ways,
    meta_training_lowers_its_loss,
    learns_a_separable_task,
]


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """Return all that a checkpoint keeps of a learner, by name."""
    return dict((*learner.named_parameters(), *learner.named_buffers()))


def _task(tasks: TaskBatch, index: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    support_x, support_y, query_x, query_y = (tensor[index] for tensor in tasks.tensors())
    return support_x, support_y, query_x, query_y


def _both_ways(x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return (x, y), (x.flip(0), y.flip(0))


def _predict(learner: Learner, tasks: TaskBatch, index: int = 0) -> Tensor:
    """Return the predictions of one task. Whatever is random is the same each time."""
    support_x, support_y, query_x, _ = _task(tasks, index)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictions: Tensor = learner(support_x, support_y, query_x)
    return predictions.detach()


class _SeenOften(Counter[tuple[Any, ...]]):
    """Makes `Traced` record a call when it first comes."""

    def __missing__(self, key: tuple[Any, ...]) -> int:
        return RECORD_AFTER - 1


def _served(setting: Setting, other: TaskSpec, built: str, remedy: str) -> Tensor:
    """Return the predictions for a task of another size than the learner was built for."""
    learner = setting.build().eval().with_spec(other)
    try:
        return _predict(learner, Setting(setting.cls, other).tasks())
    except Exception as error:
        raise AssertionError(f"{built}, {_said(error)}; {remedy}") from error


def _said(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _draws(learner: Learner, tasks: TaskBatch) -> bool:
    """Tell whether a prediction takes random numbers, as dropout does in training."""
    with torch.random.fork_rng(devices=[]):
        state = torch.random.get_rng_state()
        learner(*_task(tasks)[:3])
        return not torch.equal(torch.random.get_rng_state(), state)


def _predicted(executor: Executor, learner: Learner, tasks: TaskBatch) -> dict[str, Tensor]:
    """Return an executor's predictions."""
    predictions = predictions_of(learner.eval(), executor, tasks)
    return {"predictions": predictions}


def _stepped(executor: Executor, learner: Learner, tasks: TaskBatch) -> dict[str, Tensor]:
    """Return an executor's gradients of an outer step on tasks; none where it takes examples, or is random."""
    if learner.trains_on != "tasks" or _draws(learner.train(), tasks):
        return {}
    return {
        f"gradients of {name} at step {number}": gradient
        for number, step in enumerate(_gradients(learner, tasks, executor))
        for name, gradient in step.items()
    }


def _gradients(learner: Learner, batch: TaskBatch | Examples, executor: Executor | None = None) -> list[Gradients]:
    """Return what an outer step hands to the optimiser, step by step."""
    handed: list[Gradients] = []
    learner.train().outer_step(batch, executor or Loop(), lambda gradients: handed.append(dict(gradients)))
    return handed


def _train(
    learner: Learner, setting: Setting, steps: Iterable[int], on: TaskBatch | Examples | None = None
) -> list[float]:
    """Take outer steps with the learner's own optimiser, and return the loss before each."""
    if learner.trains_on == "nothing":
        return []
    fields = {name.removeprefix("outer."): value for name, value in learner.defaults.items()}
    outer = Outer(**{name: value for name, value in fields.items() if name in declared(Outer)})
    parameters = trainable(learner)
    optimizer = outer.build(list(parameters.values()))

    def update(gradients: Gradients) -> None:
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    losses = []
    with torch.random.fork_rng(devices=[]):
        for step in steps:
            torch.manual_seed(0 if on else step)  # on one batch, what is random is the same each time
            learner.train()
            learner.progress = step / LEARNING[-1][-1]
            losses.append(float(learner.outer_step(on or setting.batch(seed=step), Loop(), update)))
    return losses


def _judged(setting: Setting, predictions: Tensor, query_y: Tensor) -> tuple[bool, str]:
    """Tell whether predictions are clearly better than guessing, and how good they are."""
    if setting.spec.kind == "regression":
        error = float((predictions - query_y).square().mean() / query_y.square().mean())
        return error < 0.95, f"its squared error on linear tasks is {error:.2f} of that of predicting 0"
    accuracy = float((predictions.argmax(-1) == query_y).double().mean())
    return accuracy > 0.6, f"its accuracy on 3 well-separated classes is {accuracy:.2f}"


def _needs_training(cls: type[Learner]) -> None:
    if cls.trains_on == "nothing":
        raise Skipped("it has nothing to train")


def _cast(tasks: TaskBatch, dtype: torch.dtype) -> TaskBatch:
    return TaskBatch(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tasks.tensors()))


def _name(setting: Setting) -> str:
    return f"{setting.spec.kind} of examples of shape {setting.spec.x_shape}"


def _same(
    got: object, want: object, otherwise: str, *, exactly: bool = False, rtol: float = 1e-6, atol: float = 1e-8
) -> None:
    assert isinstance(got, Tensor)
    assert isinstance(want, Tensor)
    same = (
        torch.equal(got, want) if exactly else got.shape == want.shape and torch.allclose(got, want, rtol, atol, True)
    )
    assert same, otherwise
