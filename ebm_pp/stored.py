"""Rows that stay where they are, in a file or in another type, and are converted as they are read.

Data of any size cost no memory of their own: what is read is a minibatch, a pool, or one piece
after the other.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

AT_ONCE = 2**22  # numbers in a piece: 16 MB in single precision
MAPPED = 2**25  # bytes of a file that one read may leave in memory before it lets them go
# With a row the system maps what it holds around it, up to a huge page. Asking for fewer rows at
# once costs 14 ms per 8,192 rows; without it 8,192 rows would map a file of any size.
AROUND = 2**21
MOST_ROWS = 100_000  # for statistics of all rows: their errors are 0.3 % of a standard deviation


@dataclass(frozen=True)
class Stored:
    """Rows of one site, `(n, *site_shape)`, left as they are until they are indexed.

    Attributes:
        source: an array, which may be memory-mapped, or a tensor; only ever read.
        dtype: type of the rows read.
        device: device of the rows read.
    """

    source: NDArray[Any] | Tensor
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Int[Tensor, " m"] | slice) -> Tensor:
        """A copy of these rows, in `dtype` and on `device`."""
        if isinstance(self.source, Tensor):
            return self.source[rows].detach().to(device=self.device, dtype=self.dtype)
        array, mapping = self.source, _mapping(self.source)
        at = range(len(array))[rows] if isinstance(rows, slice) else rows.cpu().numpy()
        shape = (len(at), *array.shape[1:])
        found = np.empty(shape, np.float64 if _wide(array.dtype) else np.float32)
        bytes_per_row = array.itemsize * int(np.prod(array.shape[1:]))
        step = max(MAPPED // (bytes_per_row + (0 if isinstance(at, range) else AROUND)), 1)
        for i in range(0, len(at), step):
            part = at[i : i + step]
            found[i : i + step] = array[_slice(part) if isinstance(part, range) else part]
            if mapping is not None:
                mapping.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(found).to(device=self.device, dtype=self.dtype)


Data = Mapping[str, Tensor | Stored]


def some_rows(
    n: int, most: int, generator: torch.Generator | None = None
) -> Int[Tensor, " m"] | slice:
    """Numbers of at most `most` of n rows: all, or as many at random, in time independent of n.

    Of many more rows than wanted, one at random from each of `most` equal stretches: in the order
    of the file, every row as likely as any other.
    """
    if n <= most:
        return slice(None)
    if n <= 4 * most:
        return torch.randperm(n, generator=generator)[:most]
    at = torch.rand(most, dtype=torch.float64, generator=generator)
    at += torch.arange(most, dtype=torch.float64)
    return (at * (n / most)).long().clamp(max=n - 1)


def at_most(data: Data, most: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """All rows, or as many of them by `some_rows`."""
    at = some_rows(len(next(iter(data.values()))), most, generator)
    return {name: value[at] for name, value in data.items()}


def representative(data: Data) -> dict[str, Tensor]:
    """All rows, or `MOST_ROWS` of them, the same ones every time."""
    return at_most(data, MOST_ROWS, torch.Generator().manual_seed(0))


def pieces(value: Tensor | Stored) -> Iterator[tuple[int, Tensor]]:
    """All rows one piece after the other, each with the number of its first row."""
    shape = value.source.shape if isinstance(value, Stored) else value.shape
    step = max(AT_ONCE // max(int(np.prod(shape[1:])), 1), 1)
    for start in range(0, len(value), step):
        yield start, value[start : start + step]


def _wide(dtype: np.dtype[Any]) -> bool:
    """Whether single precision could lose digits."""
    return dtype.kind != "f" or dtype.itemsize > 4


def _slice(part: range) -> slice:
    return slice(part.start, part.stop, part.step)


def _mapping(array: Any) -> mmap.mmap | None:  # noqa: ANN401 - numpy's base
    """The file mapping beneath an array, where letting its pages go loses nothing.

    That is so for mappings that only read or that share what they write with the file; a private
    one (mode "c") holds changes that are nowhere else.
    """
    shared = False
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            shared = array.mode != "c"
        array = array.base
    known = shared and isinstance(array, mmap.mmap) and hasattr(array, "madvise")
    return array if known else None
