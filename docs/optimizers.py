"""A learned optimiser against SGD, RMSprop and Adam, each at its best rate, on random quadratics: `make optimizers`.

The functions are those of Andrychowicz et al. (2016, section 3.1): ‖Wθ − y‖² of ten numbers, W and y standard normal.
Rates are chosen, on functions of their own, by the value after 100 steps. Writes docs/results/optimizers.json.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from metaopt.files import write_json
from metaopt_optimizer.learned_optimizer import Optimizer, optimize

STEPS = 1, 10, 20, 50, 100
RATES = [10 ** (k / 8) for k in range(-32, 9)]  # 0.0001 to 10
RUNS, BATCH, UNROLL = 400, 8, 20
N = 10
"""Numbers in θ."""
Values = Callable[[Tensor], Tensor]
"""Takes θ of some functions in a row, (n * N,), and returns their values, (n,)."""


def quadratics(n: int, draw: Generator) -> Values:
    """Return n random functions."""
    w, y = torch.randn(n, N, N, generator=draw), torch.randn(n, N, generator=draw)
    return lambda theta: ((w @ theta.view(n, N, 1))[:, :, 0] - y).square().sum(1)


def start(n: int, draw: Generator) -> Tensor:
    """Return where n functions are minimised from."""
    return 0.01 * torch.randn(n * N, generator=draw)


def learned(draw: Generator) -> Optimizer:
    """Return an optimiser trained by truncated backpropagation on its values along the way."""
    optimizer = Optimizer(preprocessed=False)
    adam = torch.optim.Adam(optimizer.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, RUNS * STEPS[-1] // UNROLL)
    for _ in range(RUNS):
        values, point, state = quadratics(BATCH, draw), start(BATCH, draw), None
        for _ in range(STEPS[-1] // UNROLL):
            points, state = optimize(optimizer, lambda theta, values=values: values(theta).sum(), point, UNROLL, state)  # type: ignore[misc]  # mypy does not infer lambdas
            adam.zero_grad()
            (torch.stack([values(each).sum() for each in points]).sum() / BATCH).backward()
            adam.step()
            schedule.step()
            point, state = points[-1].detach(), tuple(each.detach() for each in state)
    return optimizer


def way_of(name: str, lr: float, values: Values, theta: Tensor) -> list[Tensor]:
    """Return the functions' values, (n,), after each step of torch's own optimiser."""
    theta, way = theta.clone().requires_grad_(), []
    optimizer = getattr(torch.optim, name)([theta], lr=lr)
    for _ in range(STEPS[-1]):
        optimizer.zero_grad()
        values(theta).sum().backward()
        optimizer.step()
        way.append(values(theta.detach()))
    return way


def summary(way: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Return mean, interval and median over the functions, by the number of steps."""
    found = {}
    for steps in STEPS:
        values = way[steps - 1].double()
        ci95 = 1.96 * float(values.std()) / len(values) ** 0.5
        found[str(steps)] = {"mean": float(values.mean()), "ci95": ci95, "median": float(values.quantile(0.5))}
    return found


def main() -> None:
    """Measure all, and write what came of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw = Generator().manual_seed(0)
    optimizer = learned(draw)
    validation = quadratics(500, draw), start(500, draw)
    test = quadratics(2000, draw), start(2000, draw)
    with torch.no_grad():
        points, _ = optimize(optimizer, lambda theta: test[0](theta).sum(), test[1], STEPS[-1])
        found = {"learned_optimizer": {"tasks": RUNS * BATCH, "errors": summary([test[0](point) for point in points])}}
    for name in ("SGD", "RMSprop", "Adam"):
        after = {lr: float(way_of(name, lr, *validation)[-1].mean()) for lr in RATES}
        lr = min((lr for lr in RATES if after[lr] == after[lr]), key=lambda lr: after[lr])
        found[f"{name}, rate {lr:.3g}"] = {"tasks": 0, "errors": summary(way_of(name, lr, *test))}
    write_json(Path(__file__).parent / "results" / "optimizers.json", found)


if __name__ == "__main__":
    main()
