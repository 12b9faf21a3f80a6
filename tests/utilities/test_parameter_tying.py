"""Parameters with more than one name."""

import copy

import torch

from fulmen.utilities.parameter_tying import find_shared_parameters, set_shared_parameters


class Tied(torch.nn.Module):
    """A shared weight and a shared layer."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        self.second = torch.nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.again = self.first
        self.alone = torch.nn.Linear(2, 2)


def test_shared_parameters_are_found():
    assert find_shared_parameters(Tied()) == [
        ["first.weight", "second.weight", "again.weight"],
        ["first.bias", "again.bias"],
    ]
    assert find_shared_parameters(torch.nn.Linear(1, 1)) == []


def test_shared_parameters_are_shared_again_after_they_were_separated():
    module = Tied()
    shared = find_shared_parameters(module)
    module.second.weight = torch.nn.Parameter(module.second.weight.detach().clone())
    module.again = copy.deepcopy(module.first)
    assert find_shared_parameters(module) == []

    result = set_shared_parameters(module, shared)

    assert result is module
    assert find_shared_parameters(module) == shared


def test_a_parameter_of_the_module_itself_can_be_shared():
    module = torch.nn.Module()
    module.one = torch.nn.Parameter(torch.ones(1))
    module.two = torch.nn.Parameter(torch.zeros(1))

    set_shared_parameters(module, [["one", "two"]])

    assert module.two is module.one
