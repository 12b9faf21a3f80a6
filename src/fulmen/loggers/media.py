"""Images, figures, sound, film, tables and histograms in the plain forms that trackers and files take.

Nothing but torch is needed: PNG and WAV are written here. Pillow is asked for where a picture must be read from a file,
and for film.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import wave
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fulmen.utilities.lazy import require

__all__ = [
    "as_image",
    "as_images",
    "as_video",
    "each",
    "figure_image",
    "figure_png",
    "gif_bytes",
    "histogram",
    "png_bytes",
    "saved",
    "table",
    "wav_bytes",
]

_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels to PNG's color type: gray, gray + alpha, RGB, RGBA


def each(key: str, items: Any, options: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Pair each of several images, sounds or films with its own options.

    Args:
        key: Name they are logged under, for the error.
        items: The list of them.
        options: Keyword arguments; a list among them has one entry per item.

    Raises:
        TypeError: `items` is no list or tuple.
        ValueError: A list among the options has another length.
    """
    if not isinstance(items, (list, tuple)):
        raise TypeError(
            f"What is logged as {key!r} is of type {type(items).__name__}, but a list is expected, so that one call can"
            " log several. Put it into a list: `[...]`."
        )
    for name, value in options.items():
        if isinstance(value, (list, tuple)) and len(value) != len(items):
            raise ValueError(
                f"{len(items)} items are logged as {key!r}, but `{name}` has {len(value)} entries."
                f" Give `{name}` one entry per item."
            )
    return [
        (item, {name: value[i] if isinstance(value, (list, tuple)) else value for name, value in options.items()})
        for i, item in enumerate(items)
    ]


# ---- pictures
def as_images(images: Iterable[Any]) -> list[Tensor]:
    """Return pictures as `as_image` does.

    Args:
        images: What `as_image` takes, several of them.
    """
    return [as_image(image) for image in images]


def as_image(image: Any) -> Tensor:
    """Return a picture as a uint8 tensor on the CPU.

    Args:
        image: A tensor of shape (channels, height, width) or (height, width), an array of shape (height, width,
            channels) or (height, width), a Pillow image, or the path of a file. Floats are from 0 to 1.

    Returns:
        Shape (height, width, channels), with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels.

    Raises:
        TypeError: It is something else.
        ValueError: Its shape or its values are not those of a picture.
    """
    if isinstance(image, (str, os.PathLike)):
        pillow = require("PIL.Image", extra="loggers", for_="log_image of a file")
        with pillow.open(os.fspath(image)) as opened:
            return _from_pillow(opened)
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        pixels = pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels
    elif hasattr(image, "getbands"):
        return _from_pillow(image)
    elif hasattr(image, "__array__"):
        pixels = torch.tensor(image)
    else:
        raise TypeError(
            f"An image is of type {type(image).__name__}, which cannot be drawn. Give a tensor (channels, height,"
            " width), an array (height, width, channels), a Pillow image or the path of a file."
        )
    pixels = pixels.unsqueeze(-1) if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[-1] not in _PNG_COLORS:
        raise ValueError(
            f"An image has the shape {tuple(image.shape)}, which is none of a picture with 1 to 4 channels. Give"
            " tensors as (channels, height, width) and arrays as (height, width, channels)."
        )
    return _bytes_of(pixels).contiguous()


def _from_pillow(image: Any) -> Tensor:
    mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA") else "RGBA"
    converted = image.convert(mode)
    flat = torch.frombuffer(bytearray(converted.tobytes()), dtype=torch.uint8)
    return flat.view(converted.height, converted.width, -1)


def _bytes_of(pixels: Tensor) -> Tensor:
    """From 0..1 to 0..255."""
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    limit = 1 if pixels.is_floating_point() else 255
    low, high = (0.0, 0.0) if pixels.numel() == 0 else (float(pixels.min()), float(pixels.max()))
    if not (low >= 0 and high <= limit):  # also true of NaN
        raise ValueError(
            f"The values of an image go from {low} to {high}, but {pixels.dtype} images go from 0 to {limit}."
            " Scale it, e.g. `(x - x.min()) / (x.max() - x.min())`."
        )
    return (pixels.float() * 255).round().to(torch.uint8) if limit == 1 else pixels.to(torch.uint8)


def png_bytes(image: Tensor) -> bytes:
    """Return a picture as the content of a PNG file.

    Args:
        image: What `as_image` returns.
    """
    height, width, channels = image.shape
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), image.reshape(height, -1)], dim=1)  # filter 0 per row
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLORS[channels], 0, 0, 0)
    pixels = zlib.compress(bytes(rows.flatten().tolist()), 6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def figure_image(figure: Any) -> Tensor:
    """Return a drawn figure of matplotlib.

    Args:
        figure: The figure; it stays open.

    Returns:
        uint8, shape (4, height, width).
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    width, height = (int(side) for side in figure.canvas.get_width_height(physical=True))
    flat = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    return flat.view(height, width, 4).permute(2, 0, 1)


def figure_png(figure: Any) -> bytes:
    """Return a drawn figure of matplotlib as the content of a PNG file.

    Args:
        figure: The figure; it stays open.
    """
    return png_bytes(as_image(figure_image(figure)))


# ---- film and sound
def as_video(video: Any) -> Tensor:
    """Return a film as a uint8 tensor on the CPU.

    Args:
        video: Tensor or array of shape (frames, channels, height, width); floats are from 0 to 1.

    Returns:
        The same shape.

    Raises:
        ValueError: Its shape or its values are not those of a film.
    """
    frames = video.detach().cpu() if isinstance(video, Tensor) else torch.tensor(video)
    if frames.ndim != 4 or frames.shape[1] not in (1, 3):
        raise ValueError(
            f"A video has the shape {tuple(frames.shape)}, but (frames, channels, height, width) is expected, with 1"
            " or 3 channels. Permute it, or log a file by its path."
        )
    return _bytes_of(frames)


def gif_bytes(video: Any, fps: float = 4) -> bytes:
    """Return a film as the content of an animated GIF; needs Pillow.

    Args:
        video: What `as_video` takes.
        fps: Frames per second.
    """
    pillow = require("PIL.Image", extra="loggers", for_="log_video")
    frames = as_video(video)
    rgb = frames.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
    size = (rgb.shape[2], rgb.shape[1])
    pictures = [pillow.frombytes("RGB", size, bytes(frame.flatten().tolist())) for frame in rgb]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def wav_bytes(audio: Any, sample_rate: int) -> bytes:
    """Return sound as the content of a WAV file with 16 bits per sample.

    Args:
        audio: Tensor or array of shape (samples,) or (channels, samples); floats from -1 to 1, or int16.
        sample_rate: Samples per second.

    Raises:
        ValueError: Its shape is another one.
    """
    samples = audio.detach().cpu() if isinstance(audio, Tensor) else torch.tensor(audio)
    samples = samples.unsqueeze(0) if samples.ndim == 1 else samples
    if samples.ndim != 2:
        raise ValueError(
            f"Audio has the shape {tuple(samples.shape)}, but (samples,) or (channels, samples) is expected."
        )
    if samples.is_floating_point():
        samples = (samples.clamp(-1, 1) * 32767).round()
    interleaved = samples.to(torch.int16).t().flatten().tolist()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(int(sample_rate))
        file.writeframes(struct.pack(f"<{len(interleaved)}h", *interleaved))
    return buffer.getvalue()


# ---- tables and histograms
def table(
    columns: Sequence[str] | None = None, data: Sequence[Sequence[Any]] | None = None, dataframe: Any = None
) -> tuple[list[str], list[list[Any]]]:
    """Return a table as its columns and rows.

    Args:
        columns: Names; numbers if absent.
        data: The rows.
        dataframe: A pandas or polars table, in place of both.

    Raises:
        ValueError: Neither rows nor a dataframe are given, or a row has another length than the columns.
    """
    if dataframe is not None:
        rows = dataframe.rows() if hasattr(dataframe, "rows") else dataframe.to_numpy().tolist()
        return [str(name) for name in dataframe.columns], [list(row) for row in rows]
    if data is None:
        raise ValueError("A table has neither rows nor a dataframe. Pass `data=[[...], ...]` or `dataframe=...`.")
    rows = [list(row) for row in data]
    names = [str(i) for i in range(len(rows[0]) if rows else 0)] if columns is None else [str(name) for name in columns]
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(
                f"Row {index} of a table has {len(row)} cells, but there are {len(names)} columns: {names!r}."
                " Give each row one cell per column."
            )
    return names, rows


def histogram(values: Any, bins: int = 64) -> tuple[list[int], list[float]]:
    """Count values in bins of equal width.

    Args:
        values: Tensor, array or sequence of numbers; those that are not finite are left out.
        bins: How many.

    Returns:
        The counts, and the `bins + 1` edges.
    """
    numbers = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values)
    numbers = numbers.flatten().double()
    counts, edges = torch.histogram(numbers[numbers.isfinite()], bins)
    return [int(count) for count in counts.tolist()], edges.tolist()


@contextmanager
def saved(content: bytes, suffix: str) -> Iterator[str]:
    """Keep content in a temporary file for trackers that take paths.

    Args:
        content: What the file holds.
        suffix: End of its name, e.g. `".png"`.

    Yields:
        The file's path; it is removed afterwards.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"content{suffix}")
        with open(path, "wb") as file:
            file.write(content)
        yield path
