"""Small files on local disks and object stores: read, append, replace as a whole, copy."""

from __future__ import annotations

import os
import shutil

from fulmen.utilities.files import atomic_open, get_filesystem, is_local, local_path

__all__ = ["append_text", "copy_into", "make_folder", "read_text", "replace_bytes", "replace_text"]


def make_folder(path: str) -> None:
    """Make a folder and its parents, unless it exists.

    Args:
        path: Local path or URL.
    """
    if is_local(path):
        os.makedirs(local_path(path), exist_ok=True)
    else:
        get_filesystem(path).makedirs(path, exist_ok=True)


def read_text(path: str) -> str | None:
    """Return the content of a file.

    Args:
        path: Local path or URL.

    Returns:
        The text with its line ends as they are; `None` if there is no such file.
    """
    if is_local(path):
        try:
            with open(local_path(path), encoding="utf-8", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return None
    filesystem = get_filesystem(path)
    if not filesystem.exists(path):
        return None
    return bytes(filesystem.cat_file(path)).decode("utf-8")


def append_text(path: str, text: str) -> None:
    """Add text at the end of a file, made with its folder if absent.

    On an object store, which cannot append, the file is read and written again.

    Args:
        path: Local path or URL.
        text: What to add; on a local disk it goes out in one write, so that readers see whole lines.
    """
    if not is_local(path):
        replace_text(path, (read_text(path) or "") + text)
        return
    make_folder(os.path.dirname(path))
    with open(local_path(path), "ab", buffering=0) as file:
        file.write(text.encode("utf-8"))


def replace_text(path: str, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old content or the new, never a part.

    Args:
        path: Local path or URL; the folder is made if absent.
        text: The whole new content.
    """
    if is_local(path):
        with atomic_open(path, "w", durable=False) as file:
            file.write(text)
    else:
        make_folder(os.path.dirname(path))
        get_filesystem(path).pipe_file(path, text.encode("utf-8"))


def replace_bytes(path: str, content: bytes) -> None:
    """Write a binary file as `replace_text` writes a text.

    Args:
        path: Local path or URL; the folder is made if absent.
        content: The whole new content.
    """
    if is_local(path):
        with atomic_open(path, "wb", durable=False) as file:
            file.write(content)
    else:
        make_folder(os.path.dirname(path))
        get_filesystem(path).pipe_file(path, content)


def copy_into(source: str, path: str) -> None:
    """Copy a local file or folder, in place of what is there.

    Args:
        source: Local path.
        path: Local path or URL of the copy; the folder it is in is made if absent.
    """
    make_folder(os.path.dirname(path))
    if not is_local(path):
        get_filesystem(path).put(source, path, recursive=os.path.isdir(source))
    elif os.path.isdir(source):
        shutil.copytree(source, local_path(path), dirs_exist_ok=True)
    else:
        shutil.copyfile(source, local_path(path))
