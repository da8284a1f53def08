"""Cells of detection grids: how many, and where."""

import numpy as np

from server.geometry import Float32Array

STRIDE_SETS: tuple[tuple[int, ...], ...] = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))


def cell_count(input_wh: tuple[int, int], strides: tuple[int, ...]) -> int:
    """Cells of all levels together; a level that does not divide evenly is rounded up."""
    width, height = input_wh
    return sum(-(-width // stride) * -(-height // stride) for stride in strides)


def strides_for(input_wh: tuple[int, int], count: int, per_cell: int = 1) -> tuple[int, ...] | None:
    """The strides whose grids have `count` boxes together, if any usual set does."""
    for strides in STRIDE_SETS:
        if per_cell * cell_count(input_wh, strides) == count:
            return strides
    return None


def is_grid(input_wh: tuple[int, int], count: int) -> bool:
    """Whether a row count is that of a usual grid, one or three boxes a cell.

    Grids without stride 8 are left out: at 320 x 192 theirs is 300, the usual number of
    finished boxes.
    """
    return any(
        per_cell * cell_count(input_wh, strides) == count
        for strides in STRIDE_SETS
        for per_cell in (1, 3)
        if 8 in strides
    )


def cells(input_wh: tuple[int, int], strides: tuple[int, ...]) -> tuple[Float32Array, Float32Array]:
    """Column and row (N, 2) of every cell and its stride (N, 1), level after level."""
    places, sizes = [], []
    for stride in strides:
        columns, rows = -(-input_wh[0] // stride), -(-input_wh[1] // stride)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
        places.append(grid.reshape(-1, 2))
        sizes.append(np.full((rows * columns, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(sizes).astype(np.float32)
