"""Pictures, sound, tables and histograms in plain forms."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fulmen.loggers import CSVLogger, JSONLogger, Logger
from fulmen.loggers.media import as_image, each, gif_bytes, histogram, png_bytes, table, wav_bytes


def pixels_of(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_has_the_pixels_of_the_tensor(channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)

    assert (pixels_of(png_bytes(as_image(image))).reshape(5, 7, channels) == image.permute(1, 2, 0).numpy()).all()


def test_images_of_all_kinds_become_the_same_pixels(tmp_path):
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(array).save(tmp_path / "x.png")
    tensor = torch.tensor(array).permute(2, 0, 1)

    for same in (array, tensor, tensor.float() / 255, Image.fromarray(array), tmp_path / "x.png"):
        assert (as_image(same).numpy() == array).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 4, 4), 1.5), r"from 1.5 to 1.5.*from 0 to 1\. Scale it"),
        (torch.full((4, 4), float("nan")), "from nan to nan"),
        (torch.zeros(7, 4, 4), r"shape \(7, 4, 4\)"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        as_image(image)


def test_wav_has_the_samples():
    with wave.open(io.BytesIO(wav_bytes(torch.tensor([[0.0, 1.0, -1.0], [0.5, 2.0, 0.0]]), 8000))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 3)
        samples = np.frombuffer(file.readframes(3), np.int16)
    assert samples.tolist() == [0, 16384, 32767, 32767, -32767, 0]


def test_gif_has_the_frames():
    with Image.open(io.BytesIO(gif_bytes(torch.rand(3, 3, 8, 8), fps=2))) as film:
        assert film.n_frames == 3
        assert film.info["duration"] == 500


def test_histogram_leaves_out_what_is_not_finite():
    counts, edges = histogram([0.0, 1.0, 1.0, 4.0, float("inf"), float("nan")], bins=4)

    assert counts == [1, 2, 0, 1]
    assert edges == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sum(histogram(torch.full((5,), 2.0), bins=3)[0]) == 5


def test_tables_are_checked():
    pandas = pytest.importorskip("pandas")

    assert table(data=[[1, 2]]) == (["0", "1"], [[1, 2]])
    assert table(dataframe=pandas.DataFrame({"a": [1], "b": ["x"]})) == (["a", "b"], [[1, "x"]])
    with pytest.raises(ValueError, match="Row 1 of a table has 1 cells"):
        table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="neither rows nor a dataframe"):
        table(["a"])


def test_list_options_are_one_per_item():
    assert each("x", ["a", "b"], {"caption": ["A", "B"], "fps": 3}) == [
        ("a", {"caption": "A", "fps": 3}),
        ("b", {"caption": "B", "fps": 3}),
    ]


def test_index_of_media_tells_the_steps_and_notes_and_is_taken_back(tmp_path):
    logger = JSONLogger(tmp_path, version=0)
    logger.log_image("val/seen", [torch.zeros(1, 2, 2)] * 2, step=1, caption=["a", "b"])
    logger.log_metrics({"x": 1.0}, 1)
    position = logger.position()
    logger.log_text("../note", "lost", step=2)
    logger.finalize("failed")
    again = JSONLogger(tmp_path, version=0)
    again.resume_at(position)

    folder = Path(logger.log_dir) / "media"
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert lines == [
        {"kind": "image", "key": "val/seen", "step": 1, "file": f"val/seen/1_{i}.png", "caption": caption}
        for i, caption in enumerate("ab")
    ]
    assert (folder / "note/2.txt").exists()  # no key leads out of the folder


def test_things_logged_under_one_key_at_one_step_do_not_replace_each_other(tmp_path):
    def files(logger):
        folder = Path(logger.log_dir) / "media"
        names = [json.loads(line)["file"] for line in (folder / "index.jsonl").read_text().splitlines()]
        return [(name, (folder / name).read_text()) for name in names]

    first = JSONLogger(tmp_path, version=0)
    first.log_metrics({"x": 1.0}, 0)
    for text in "ab":
        first.log_text("seen", text, step=3)
    position = first.position()
    first.log_text("seen", "lost", step=3)
    second = JSONLogger(tmp_path, version=0)
    second.resume_at(position)
    second.log_text("seen", "c", step=3)
    second.log_text("index.jsonl", "d", step=3)

    assert files(second) == [
        ("seen/3.txt", "a"), ("seen/3_1.txt", "b"), ("seen/3_2.txt", "c"), ("_index.jsonl/3.txt", "d")
    ]  # fmt: skip


def test_logger_of_a_user_says_what_it_cannot():
    class Own(Logger):
        name = version = None

        def log_metrics(self, metrics, step=None): ...

        def log_hyperparams(self, params, *args, **kwargs): ...

    with pytest.raises(NotImplementedError, match=r"`Own.log_table` cannot work.*CSVLogger.*JSONLogger"):
        Own().log_table("x", ["a"], [[1]])
    assert Own().x_axis is None


def test_artifacts_are_copied_files_and_folders(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.txt").write_text("x")
    logger = CSVLogger(tmp_path, version=0)
    logger.log_artifact(str(tmp_path / "data"))
    logger.log_artifact(str(tmp_path / "data/x.txt"), "y.txt")

    kept = Path(logger.log_dir) / "artifacts"
    assert (kept / "data/x.txt").read_text() == (kept / "y.txt").read_text() == "x"
