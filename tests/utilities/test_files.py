"""Files that are whole or not there."""

import errno
import http.server
import io
import os
import pickle
import resource
import stat
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fulmen.utilities import files
from fulmen.utilities.exceptions import DamagedFileError
from fulmen.utilities.files import (
    atomic_open,
    atomic_save,
    atomic_symlink,
    ensure_writable,
    get_filesystem,
    is_local,
    is_shared_filesystem,
    load_file,
    local_path,
    verify_file,
)

CHECKPOINT = {"weights": torch.arange(40), "epoch": 3, "names": ["a", "b"]}


def assert_equal_checkpoints(first, second):
    assert torch.equal(first["weights"], second["weights"])
    assert {**first, "weights": 0} == {**second, "weights": 0}


class Unpicklable:
    """Fails in the middle of a save."""

    def __reduce__(self):
        raise ValueError("cannot be saved")


@contextmanager
def files_of_at_most(num_bytes):
    """The nearest thing to a full disk that needs no privileges: writes beyond the limit fail with an `OSError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- where


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("a/b.ckpt", True),
        (Path("/a/b.ckpt"), True),
        ("file:///a/b.ckpt", True),
        ("local:///a/b.ckpt", True),
        ("C:\\a\\b.ckpt", True),
        ("s3://bucket/b.ckpt", False),
        ("https://host/b.ckpt", False),
        ("memory://b.ckpt", False),
        ("simplecache::file:///a/b.ckpt", False),
    ],
)
def test_local_paths_are_told_from_others(path, local):
    assert is_local(path) is local


def test_the_protocol_of_a_local_path_is_dropped():
    assert local_path("file:///a/b") == "/a/b"
    assert local_path(Path("/a/b")) == "/a/b"


def test_the_file_system_of_a_path_is_found(tmp_path):
    assert get_filesystem(tmp_path).exists(str(tmp_path))
    assert get_filesystem("memory://x").protocol == "memory"


def test_a_folder_is_created_and_found_writable(tmp_path):
    ensure_writable(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=r"Nothing can be written there\. .*file/folder") as caught:
        ensure_writable(tmp_path / "file" / "folder")
    assert caught.value.errno == errno.ENOTDIR
    assert caught.value.filename == str(tmp_path / "file" / "folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named_in_the_error(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)

    with pytest.raises(PermissionError, match="Make the folder writable"):
        ensure_writable(tmp_path)
    with pytest.raises(PermissionError, match=r"Make the folder writable .*a\.ckpt"):
        atomic_save(CHECKPOINT, tmp_path / "a.ckpt")


# ---- write


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_what_is_saved_can_be_loaded(tmp_path, prefix):
    path = f"{prefix}{tmp_path}/new/folder/a.ckpt"

    atomic_save(CHECKPOINT, path)

    assert_equal_checkpoints(load_file(path), CHECKPOINT)
    assert os.listdir(tmp_path / "new" / "folder") == ["a.ckpt"]


def test_a_saved_file_is_readable_by_whom_the_umask_allows(tmp_path):
    (tmp_path / "other").touch()

    atomic_save(CHECKPOINT, tmp_path / "a.ckpt")

    assert (tmp_path / "a.ckpt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    atomic_save({"old": 1}, tmp_path / "best.ckpt")
    atomic_symlink(tmp_path / "best.ckpt", tmp_path / "last.ckpt")

    atomic_save({"new": 2}, tmp_path / "last.ckpt")

    assert load_file(tmp_path / "best.ckpt") == {"old": 1}
    assert load_file(tmp_path / "last.ckpt") == {"new": 2}


def test_an_object_that_cannot_be_saved_leaves_the_earlier_file(tmp_path):
    atomic_save(CHECKPOINT, tmp_path / "a.ckpt")

    with pytest.raises(ValueError, match=r"^cannot be saved$"):
        atomic_save({"weights": torch.ones(9), "bad": Unpicklable()}, tmp_path / "a.ckpt")
    assert_equal_checkpoints(load_file(tmp_path / "a.ckpt"), CHECKPOINT)
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_a_full_disk_is_named_and_leaves_the_earlier_file(tmp_path, limit):
    atomic_save(CHECKPOINT, tmp_path / "a.ckpt")

    with files_of_at_most(limit), pytest.raises(OSError, match="was not written, an earlier one") as caught:
        atomic_save(torch.ones(100_000), tmp_path / "a.ckpt")
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "a.ckpt")
    assert_equal_checkpoints(load_file(tmp_path / "a.ckpt"), CHECKPOINT)
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match=r"No space left on device\. .* Free some space or choose another folder"):
        atomic_save(CHECKPOINT, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_a_file_system_that_cannot_sync_is_accepted(tmp_path, monkeypatch):
    def unsupported(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)

    atomic_save(CHECKPOINT, tmp_path / "a.ckpt")

    assert_equal_checkpoints(load_file(tmp_path / "a.ckpt"), CHECKPOINT)


def test_until_the_rename_only_a_hidden_file_is_there(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "replace", lambda source, target: seen.append((Path(source).name, os.listdir(tmp_path))))

    atomic_save(CHECKPOINT, tmp_path / "a.ckpt")

    (name, listing), *_ = seen
    assert listing == [name]
    assert name.startswith(".a.ckpt.")
    assert name.endswith(".tmp")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "a.ckpt").mkdir()

    with pytest.raises(IsADirectoryError, match=r"a\.ckpt"):
        atomic_save(CHECKPOINT, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_long_name_can_be_saved(tmp_path):
    name = "x" * 250 + ".ckpt"

    atomic_save(CHECKPOINT, tmp_path / name)

    assert os.listdir(tmp_path) == [name]


def test_text_is_written_whole_or_not_at_all(tmp_path):
    with atomic_open(tmp_path / "a.csv", "w") as file:
        file.write("step,loß\n")
        assert not (tmp_path / "a.csv").exists()

    assert (tmp_path / "a.csv").read_bytes() == "step,loß\n".encode()


def test_an_interruption_while_writing_leaves_nothing(tmp_path):
    def interrupted():
        with atomic_open(tmp_path / "a.csv", "w") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_file_is_saved_to_and_loaded_from_another_file_system():
    filesystem = get_filesystem("memory://")

    atomic_save(CHECKPOINT, "memory://folder_of_test/a.ckpt")
    atomic_save({"second": 2}, "memory://folder_of_test/a.ckpt")

    assert load_file("memory://folder_of_test/a.ckpt") == {"second": 2}
    assert filesystem.ls("/folder_of_test", detail=False) == ["/folder_of_test/a.ckpt"]
    filesystem.rm("/folder_of_test", recursive=True)


def test_a_failed_publication_leaves_the_earlier_file(monkeypatch):
    filesystem = get_filesystem("memory://")
    atomic_save({"first": 1}, "memory://folder_of_test/a.ckpt")

    def broken(*args, **kwargs):
        raise ConnectionError("gone")

    monkeypatch.setattr(type(filesystem), "mv", broken)
    with pytest.raises(ConnectionError, match="gone"):
        atomic_save({"second": 2}, "memory://folder_of_test/a.ckpt")
    assert load_file("memory://folder_of_test/a.ckpt") == {"first": 1}
    assert filesystem.ls("/folder_of_test", detail=False) == ["/folder_of_test/a.ckpt"]
    filesystem.rm("/folder_of_test", recursive=True)


# ---- links


def test_a_link_is_relative_and_can_be_moved_to_another_target(tmp_path):
    for number in (1, 2):
        atomic_save({"number": number}, tmp_path / "runs" / f"{number}.ckpt")
        atomic_symlink(tmp_path / "runs" / f"{number}.ckpt", tmp_path / "last.ckpt")

        assert os.readlink(tmp_path / "last.ckpt") == f"runs/{number}.ckpt"
        assert load_file(tmp_path / "last.ckpt") == {"number": number}
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "runs"]


def test_a_link_replaces_a_file_and_a_folder(tmp_path):
    (tmp_path / "target").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "content").touch()

    atomic_symlink(tmp_path / "target", tmp_path / "file")
    atomic_symlink(tmp_path / "target", tmp_path / "folder")

    assert os.readlink(tmp_path / "file") == os.readlink(tmp_path / "folder") == "target"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "target"]


def test_a_link_replaces_a_link_to_a_folder_and_not_the_folder(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        atomic_symlink(tmp_path / name, tmp_path / "last")

    assert os.readlink(tmp_path / "last") == "new"
    assert (tmp_path / "old").is_dir()


def test_a_link_in_a_linked_folder_leads_to_its_target(tmp_path):
    (tmp_path / "deep" / "real").mkdir(parents=True)
    atomic_save({"a": 1}, tmp_path / "deep" / "a.ckpt")
    (tmp_path / "alias").symlink_to(tmp_path / "deep" / "real")

    atomic_symlink(tmp_path / "deep" / "a.ckpt", tmp_path / "alias" / "last.ckpt")

    assert load_file(tmp_path / "alias" / "last.ckpt") == {"a": 1}


# ---- read


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.ckpt"
    atomic_save(CHECKPOINT, path)
    return path


def test_a_changed_byte_of_a_weight_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[content.index(torch.arange(40).numpy().tobytes()) + 80] ^= 1
    saved.write_bytes(content)
    assert torch.load(saved)["weights"][10] == 11  # torch alone does not notice

    with pytest.raises(DamagedFileError, match=r"a\.ckpt` is damaged: its part 'a.*/data/0' does not match"):
        load_file(saved)


@pytest.mark.parametrize("kept", [0, 1, 2, 100, 900, -1])
def test_a_truncated_file_is_named(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])

    with pytest.raises(DamagedFileError, match=r"a\.ckpt` is damaged: it is .* Use another checkpoint"):
        load_file(saved)


@pytest.mark.parametrize("content", [bytes(500), b"hello, this is text", b"PK is how zip files begin", b"\n"])
def test_a_file_of_something_else_is_named(saved, content):
    saved.write_bytes(content)

    with pytest.raises(DamagedFileError, match=r"a\.ckpt` is damaged"):
        load_file(saved)


def test_whatever_byte_is_changed_the_content_is_never_silently_wrong(saved):
    good = saved.read_bytes()
    damaged = 0
    for position in range(0, len(good), 3):
        content = bytearray(good)
        content[position] ^= 0x80
        saved.write_bytes(content)
        try:
            assert_equal_checkpoints(load_file(saved), CHECKPOINT)  # the byte was padding
        except DamagedFileError:
            damaged += 1

    assert damaged > len(good) / 6


def test_a_whole_file_passes_the_check(saved):
    verify_file(saved)


def test_a_file_without_checksums_is_loaded(saved):
    torch.serialization.set_crc32_options(False)
    try:
        atomic_save(CHECKPOINT, saved)
    finally:
        torch.serialization.set_crc32_options(True)

    assert_equal_checkpoints(load_file(saved), CHECKPOINT)


def test_a_file_of_the_old_format_is_loaded_and_its_truncation_noticed(saved):
    torch.save(CHECKPOINT, saved, _use_new_zipfile_serialization=False)
    assert_equal_checkpoints(load_file(saved), CHECKPOINT)
    saved.write_bytes(saved.read_bytes()[:-1])

    with pytest.raises(DamagedFileError, match="truncated"):
        load_file(saved)


def test_a_missing_file_and_a_folder_are_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.ckpt"):
        load_file(tmp_path / "no.ckpt")
    with pytest.raises(IsADirectoryError):
        load_file(tmp_path)


def test_objects_are_refused_unless_they_are_trusted(saved):
    atomic_save({"path": io.StringIO}, saved)

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_file(saved)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_file(saved, weights_only=True)
    assert load_file(saved, weights_only=False) == {"path": io.StringIO}


@pytest.mark.parametrize("location", ["meta", torch.device("meta"), {"cpu": "meta"}])
def test_tensors_are_put_where_they_are_wanted(saved, location):
    assert load_file(saved, map_location=location)["weights"].device.type == "meta"


@pytest.fixture
def address(tmp_path):
    """A server for the files of `tmp_path`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_objects_in_a_file_from_an_address_are_refused_unless_they_are_trusted(address, tmp_path):
    atomic_save({"path": io.StringIO}, tmp_path / "a.ckpt")
    atomic_save(CHECKPOINT, tmp_path / "plain.ckpt")

    assert_equal_checkpoints(load_file(f"{address}/plain.ckpt"), CHECKPOINT)
    assert load_file(f"{address}/a.ckpt", weights_only=False) == {"path": io.StringIO}
    for weights_only in (None, True):
        with pytest.raises(pickle.UnpicklingError, match=rf"`{address}/a.ckpt` holds .* pass `weights_only=False`"):
            load_file(f"{address}/a.ckpt", weights_only=weights_only)


def test_problems_with_an_address_name_it(address, tmp_path):
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04half")

    with pytest.raises(OSError, match=rf"`{address}/none.ckpt` could not be downloaded: .*404"):
        load_file(f"{address}/none.ckpt")
    with pytest.raises(DamagedFileError, match=rf"`{address}/half.ckpt` is damaged"):
        load_file(f"{address}/half.ckpt")


# ---- shared


class ThreadRank:
    """The verbs of a strategy between two threads."""

    world_size = 2

    def __init__(self, rank, shared):
        self.rank, self.shared = rank, shared
        self.is_global_zero = rank == 0

    def broadcast(self, obj):
        if self.rank == 0:
            self.shared["value"] = obj
        self.shared["barrier"].wait()
        return self.shared["value"]

    def reduce_boolean_decision(self, decision, all=True):
        self.shared[self.rank] = decision
        self.shared["barrier"].wait()
        return self.shared[0] and self.shared[1]


def ask_two_ranks(path, timeout=3):
    shared = {"barrier": threading.Barrier(2, timeout=10)}
    answers = {}

    def ask(rank):
        answers[rank] = is_shared_filesystem(ThreadRank(rank, shared), path, timeout)

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_folder_that_all_ranks_see_is_shared_and_left_clean(tmp_path):
    assert ask_two_ranks(tmp_path) == {0: True, 1: True}
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_not_shared(tmp_path):
    assert ask_two_ranks(tmp_path / "no", timeout=0) == {0: False, 1: False}


def test_one_rank_and_remote_folders_are_shared_without_a_look(tmp_path, monkeypatch):
    alone = ThreadRank(0, {})
    monkeypatch.setattr(alone, "world_size", 1)

    assert is_shared_filesystem(alone)
    assert is_shared_filesystem(ThreadRank(0, {}), "s3://bucket/folder")


def test_all_lists_the_public_names():
    public = {name for name, value in vars(files).items() if getattr(value, "__module__", "") == files.__name__}

    assert {name for name in public if not name.startswith("_")} == set(files.__all__)
