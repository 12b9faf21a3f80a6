"""Disks that are full, folders that cannot be written, files with flipped bits: a clear error, nothing lost."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import atomic_save, atomic_symlink, ensure_writable, get_filesystem, load_file, verify_file

CAN_MOUNT = sys.platform == "linux" and os.geteuid() == 0
needs_mount = pytest.mark.skipif(not CAN_MOUNT, reason="mounting a small file system takes root on Linux")


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"this machine does not allow mounts: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def checkpoint(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    weights = OrderedDict((f"w{n}", torch.randn(1000, generator=generator)) for n in range(4))
    return {"epoch": seed, "state_dict": weights, "names": ["a", "b"], "shared": weights["w0"][:10]}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    pairs = zip(first["state_dict"].values(), second["state_dict"].values(), strict=True)
    return (
        all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs)
        and list(first["state_dict"]) == list(second["state_dict"])
        and (first["epoch"], first["names"]) == (second["epoch"], second["names"])
        and torch.equal(first["shared"], second["shared"])
    )


# ---- writing


@needs_mount
@pytest.mark.parametrize("make", [TorchCheckpointIO, AsyncCheckpointIO])
def test_a_full_disk_is_named_and_the_earlier_checkpoint_stays(make: Any, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=64k") as folder:
        io = make()
        io.save_checkpoint(checkpoint(1), folder / "a.ckpt")
        io.publish(lambda: atomic_symlink(folder / "a.ckpt", folder / "last.ckpt"))
        io.wait()

        def replace_it() -> None:
            io.save_checkpoint({"big": torch.ones(100_000)}, folder / "a.ckpt")
            io.remove_checkpoint(folder / "a.ckpt")
            io.wait()  # for the error in the background

        with pytest.raises(OSError, match=r"earlier one of that name is untouched\. Free some space") as caught:
            replace_it()
        io.teardown()

        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(folder / "a.ckpt")
        assert same(load_file(folder / "last.ckpt"), checkpoint(1))
        assert sorted(os.listdir(folder)) == ["a.ckpt", "last.ckpt"]


@needs_mount
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "size=1m") as folder:
        atomic_save(checkpoint(1), folder / "a.ckpt")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

        for attempt in (ensure_writable, lambda folder: atomic_save(checkpoint(2), folder / "a.ckpt")):
            with pytest.raises(OSError, match="file system is read-only: choose another folder") as caught:
                attempt(folder)
            assert caught.value.errno == errno.EROFS
        assert same(load_file(folder / "a.ckpt"), checkpoint(1))


# ---- reading


def parts_of(path: Path) -> dict[str, range]:
    """Where in the file tensors, pickle, and what belongs to the archive itself stand."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    starts = {}
    content = path.read_bytes()
    for name, entry in entries.items():
        names, extras = content[entry.header_offset + 26], content[entry.header_offset + 28]
        start = entry.header_offset + 30 + names + extras + 256 * content[entry.header_offset + 29]
        starts[name] = range(start, start + entry.file_size)
    directory = content.rindex(b"PK\x01\x02", 0, len(content)) - 60 * len(entries)
    pickle_part = starts["archive/data.pkl"]
    return {
        "tensor": starts["archive/data/0"],
        "pickle": pickle_part,
        "header": range(30),
        "padding": range(pickle_part.stop, pickle_part.stop + 300),
        "directory": range(directory, len(content)),
    }


@pytest.mark.parametrize("part", ["tensor", "pickle", "header", "padding", "directory"])
@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(part: str, where: str, tmp_path: Path) -> None:
    path, good, draw, noticed = tmp_path / "a.ckpt", checkpoint(), random.Random(part), 0
    atomic_save(good, path)
    content, places = path.read_bytes(), parts_of(path)[part]
    filesystem = get_filesystem("memory://")
    for _ in range(60):
        changed = bytearray(content)
        changed[draw.choice(places)] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        filesystem.pipe_file("/flipped/a.ckpt", bytes(changed))
        name = str(path) if where == "local" else "memory://flipped/a.ckpt"
        try:
            assert same(load_file(name), good)
        except DamagedFileError as error:
            noticed += 1
            assert f"The file `{name}` is damaged: " in str(error)  # noqa: PT017 - it may be raised
            assert "Use another checkpoint, or copy it again from its source" in str(error)  # noqa: PT017
            with pytest.raises(DamagedFileError):
                verify_file(name)
    filesystem.rm("/flipped", recursive=True)

    assert noticed == 60 if part in ("tensor", "pickle") else noticed > 0


@pytest.mark.parametrize("kept", [0, 1, 100, 3000, -1])
def test_a_truncated_file_on_a_server_is_named(kept: int) -> None:
    filesystem = get_filesystem("memory://")
    atomic_save(checkpoint(), "memory://cut/a.ckpt")
    filesystem.pipe_file("/cut/a.ckpt", filesystem.cat_file("/cut/a.ckpt")[:kept])

    with pytest.raises(DamagedFileError, match=r"`memory://cut/a.ckpt` is damaged: it is (empty|truncated|not a file)"):
        load_file("memory://cut/a.ckpt")
    filesystem.rm("/cut", recursive=True)


def test_a_file_on_a_server_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = get_filesystem("memory://")
    atomic_save(checkpoint(), "memory://once/a.ckpt")
    file_class = type(filesystem.open("/once/a.ckpt", "rb"))
    read, num_bytes = file_class.read, []

    def counting(self: Any, size: int = -1) -> bytes:
        content: bytes = read(self, size)
        num_bytes.append(len(content))
        return content

    monkeypatch.setattr(file_class, "read", counting)
    loaded = load_file("memory://once/a.ckpt")

    assert same(loaded, checkpoint())
    assert sum(size for size in num_bytes if size >= 4000) == 4 * 4000 + sum(s for s in num_bytes if s > 4000)
    filesystem.rm("/once", recursive=True)


# ---- files of other kinds


def test_our_files_can_be_mapped_into_memory(tmp_path: Path) -> None:
    atomic_save(checkpoint(), tmp_path / "a.ckpt")

    assert same(torch.load(tmp_path / "a.ckpt", mmap=True), checkpoint())


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("weights_only", [None, True, False])
def test_a_file_of_the_old_format_is_loaded(where: str, weights_only: bool | None, tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    name = str(tmp_path / "a.ckpt")
    if where == "remote":
        get_filesystem("memory://").pipe_file("/old/a.ckpt", (tmp_path / "a.ckpt").read_bytes())
        name = "memory://old/a.ckpt"

    assert same(load_file(name, weights_only=weights_only), checkpoint())
