"""Images that stay in their file, as there are more of them than memory should hold."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_jax.config import InputError


class ImagesOnDisk:
    """The images of a file from byte `start` on, one after the other, a byte a pixel.

    A slice of them has not been read either; `np.asarray` reads. That is by plain reads, of which
    nothing stays in the memory of the process but the result; of a memory map all would count
    that was ever touched.
    """

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, file: Path, start: int, shape: tuple[int, int, int], step: int = 1) -> None:
        self.file, self.start, self.shape, self.step = file, start, shape, step

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """The count of pixels."""
        return self.shape[0] * self._image_bytes

    @property
    def _image_bytes(self) -> int:
        return self.shape[1] * self.shape[2]

    def __getitem__(self, part: slice) -> "ImagesOnDisk":
        chosen = range(len(self))[part]
        start = self.start + chosen.start * self.step * self._image_bytes
        shape = (len(chosen), *self.shape[1:])
        return ImagesOnDisk(self.file, start, shape, self.step * chosen.step)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, read now.

        Raises:
            InputError: the file cannot be read, or has become shorter.
        """
        images = np.empty(self.shape, self.dtype)
        parts = [images] if self.step == 1 else images
        stride = self.step * self._image_bytes
        try:
            with self.file.open("rb", buffering=0) as stream:
                for i, part in enumerate(parts):
                    stream.seek(self.start + i * stride)
                    if part.nbytes != _fill(part, stream):
                        raise InputError(f"{self.file} has become shorter; get it again")
        except OSError as error:
            raise InputError(f"{self.file} cannot be read ({error.strerror})") from None
        return images if dtype is None else images.astype(dtype, copy=False)

    def sha256(self) -> str:
        """SHA-256 of the whole file."""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _fill(part: UInt8[np.ndarray, "..."], stream: Any) -> int:
    """Reads into `part` until it is full, or the file at its end; gives the bytes read.

    Linux reads at most 2 GiB at once.
    """
    view, done = memoryview(part.reshape(-1)), 0
    while done < len(view) and (count := stream.readinto(view[done:])):
        done += count
    return done
