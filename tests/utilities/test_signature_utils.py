"""Which arguments a hook can take."""

import functools

import pytest

from fulmen.utilities.signature_utils import is_param_in_hook_signature as takes


class Hooks:
    """Hooks of several shapes."""

    def plain(self, batch):
        """Take one."""

    def both(self, batch, batch_idx):
        """Take two."""

    def renamed(self, a, b):
        """Take two by other names."""

    def any_(self, *args):
        """Take any."""

    def keywords(self, batch, *, batch_idx=0):
        """Take one by position."""


@pytest.mark.parametrize(
    ("hook", "options", "expected"),
    [
        (Hooks().both, {}, True),
        (Hooks().plain, {}, False),
        (Hooks().renamed, {}, False),
        (Hooks().renamed, {"min_args": 2}, True),
        (Hooks().plain, {"min_args": 2}, False),
        (Hooks().any_, {}, True),
        (Hooks().any_, {"explicit": True}, False),
        (Hooks().keywords, {}, False),
        (Hooks.both, {"min_args": 2}, True),
        (Hooks.plain, {"min_args": 2}, False),
        (lambda batch, batch_idx: None, {}, True),
        (lambda a, b: None, {"min_args": 3}, False),
        (functools.partial(Hooks().both, 1), {}, True),
    ],
)
def test_batch_idx_is_passed_only_to_hooks_that_take_it(hook, options, expected):
    assert takes(hook, "batch_idx", **options) is expected


def test_a_wrapped_hook_is_seen_through():
    @functools.wraps(Hooks.both)
    def wrapper(*args, **kwargs):
        return Hooks.both(*args, **kwargs)

    assert takes(wrapper, "batch_idx", explicit=True)
