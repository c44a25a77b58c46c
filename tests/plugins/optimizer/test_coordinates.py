"""Weights become one vector and back, gradients are preprocessed by the paper's formula, and the LSTM is torch's."""

import math

import pytest
import torch
from torch import Tensor, nn

from metaopt_optimizer.coordinates import CoordinateLSTM, flatten, preprocess, unflatten


def test_weights_are_one_vector_and_back() -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(6.0), "c": torch.arange(7.0, 9.0)}
    vector = flatten(weights)
    assert vector.tolist() == list(range(9))
    back = unflatten(vector + 1, weights)
    assert list(back) == ["a", "b", "c"]
    assert all(torch.equal(back[name], weight + 1) for name, weight in weights.items())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-6, math.exp(-10.001), math.exp(-9.999), 0.02, 1.0, 50.0])
def test_preprocessing_is_the_papers_formula(size: float, sign: int) -> None:
    """(log|x| / p, sign x) where |x| ≥ e⁻ᵖ and (−1, eᵖx) below, with p = 10 (appendix A)."""
    above = size >= math.exp(-10)
    expected = (math.log(size) / 10, sign) if above else (-1, math.exp(10) * sign * size)
    row = preprocess(torch.tensor([sign * size, 1.0], dtype=torch.float64))
    assert row.shape == (2, 2)
    assert row[:, 0].tolist() == pytest.approx(expected, rel=1e-12, abs=0)
    assert row[:, 1].tolist() == [0, 1]


def torch_cell(lstm: CoordinateLSTM, n_inputs: int) -> nn.LSTMCell:
    """Return torch's own cell with the same weights, whose gates stand in the same order."""
    cell = nn.LSTMCell(n_inputs, lstm.n_hidden).double()
    with torch.no_grad():
        cell.weight_ih.copy_(lstm.weight[:, :n_inputs])
        cell.weight_hh.copy_(lstm.weight[:, n_inputs:])
        cell.bias_ih.copy_(lstm.bias[:, 0])
        cell.bias_hh.zero_()
    return cell


def lstm_cell(n_inputs: int, n_hidden: int) -> CoordinateLSTM:
    torch.manual_seed(0)
    lstm = CoordinateLSTM(n_inputs, n_hidden).double()
    nn.init.uniform_(lstm.bias, -1, 1)
    return lstm


def test_the_lstm_is_torchs_with_coordinates_last() -> None:
    lstm, n = lstm_cell(3, 4), 5
    cell = torch_cell(lstm, 3)
    state = lstm.start(torch.ones(n, dtype=torch.float64))
    expected: tuple[Tensor, Tensor] | None = None
    for _ in range(3):
        inputs = torch.randn(3, n, dtype=torch.float64)
        state = lstm(inputs, state)
        expected = cell(inputs.T, expected)
        for ours, torchs in zip(state, expected, strict=True):
            torch.testing.assert_close(ours, torchs.T, rtol=1e-9, atol=1e-12)


def test_coordinates_know_nothing_of_each_other() -> None:
    lstm, inputs = lstm_cell(2, 4), torch.randn(2, 2, 6, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0])

    def run(inputs: Tensor) -> Tensor:
        state = lstm.start(inputs[0, 0])
        for step in inputs:
            state = lstm(step, state)
        return state[0]

    torch.testing.assert_close(run(inputs[:, :, order]), run(inputs)[:, order], rtol=1e-12, atol=1e-15)
