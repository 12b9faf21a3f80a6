"""Norms of gradients."""

import pytest
import torch

from fulmen.utilities.grads import grad_norm


def module_with_gradients() -> torch.nn.Linear:
    module = torch.nn.Linear(2, 1)
    module(torch.tensor([[3.0, 4.0]])).sum().backward()
    return module


def test_the_norms_are_named_and_right():
    norms = grad_norm(module_with_gradients(), norm_type=2)

    assert {name: float(norm) for name, norm in norms.items()} == {
        "grad_2.0_norm/weight": 5.0,
        "grad_2.0_norm/bias": 1.0,
        "grad_2.0_norm_total": pytest.approx(26**0.5),
    }


def test_the_largest_value_is_the_norm_of_order_inf():
    norms = grad_norm(module_with_gradients(), norm_type="inf", group_separator=":")

    assert float(norms["grad_inf_norm:weight"]) == 4.0
    assert float(norms["grad_inf_norm_total"]) == 4.0


def test_the_total_is_that_of_all_gradients_in_one_vector():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    module(torch.randn(5, 3)).sum().backward()
    together = torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])

    for order in (1, 2, 3.5):
        total = grad_norm(module, order)[f"grad_{float(order)}_norm_total"]
        torch.testing.assert_close(total, together.norm(order))


def test_parameters_without_gradient_are_left_out():
    module = module_with_gradients()
    module.bias.grad = None

    assert set(grad_norm(module, 1)) == {"grad_1.0_norm/weight", "grad_1.0_norm_total"}
    assert grad_norm(torch.nn.Linear(1, 1), 2) == {}


@pytest.mark.parametrize("order", [0, -1, "-2", float("nan")])
def test_an_order_without_norm_is_refused(order):
    with pytest.raises(ValueError, match="`norm_type` must be a positive number or 'inf'"):
        grad_norm(torch.nn.Linear(1, 1), order)
