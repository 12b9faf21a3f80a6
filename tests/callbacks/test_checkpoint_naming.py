from __future__ import annotations

import os

import pytest
import torch

from fulmen.callbacks.checkpoint_naming import absolute_folder, fill_template, unused_path


def fill(template, metrics, insert_names=True):
    return fill_template(template, metrics, insert_names=insert_names, join_char="=")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{epoch}-{step}", "epoch=3-step=12"),
        ("m-{epoch:03d}-{val_loss:.2f}", "m-epoch=003-val_loss=0.25"),
        ("{val/acc:.1f}", "val/acc=0.5"),
        ("{a.b}", "a.b=1"),
        ("{unknown}", "unknown=0"),
        ("plain", "plain"),
        ("{{epoch}}-{epoch}", "{epoch}-epoch=3"),
    ],
)
def test_fields_of_a_template_take_values_of_metrics(template, expected):
    metrics = {"epoch": 3, "step": 12, "val_loss": torch.tensor(0.25), "val/acc": torch.tensor(0.5), "a.b": 1}

    assert fill(template, metrics) == expected


def test_names_are_left_out_when_asked():
    assert fill("{epoch}_{v:.1f}", {"epoch": 1, "v": 0.25}, insert_names=False) == "1_0.2"


def test_filling_a_template_leaves_the_metrics_alone():
    metrics = {"epoch": 1}
    fill("{other}", metrics)

    assert metrics == {"epoch": 1}


def test_unused_path_counts_versions_up():
    def name(version):
        return "a" if version is None else f"a-v{version}"

    assert unused_path(name, {"a", "a-v1"}.__contains__, 1) == "a-v2"
    assert unused_path(name, {"a", "a-v1"}.__contains__, 1, allowed="a-v1") == "a-v1"
    assert unused_path(name, set().__contains__, 1) == "a"


def test_local_folders_are_expanded_and_urls_are_not():
    assert absolute_folder("~/x") == os.path.realpath(os.path.expanduser("~/x"))
    assert absolute_folder("s3://bucket/x") == "s3://bucket/x"
