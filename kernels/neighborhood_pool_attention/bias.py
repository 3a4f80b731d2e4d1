"""The position bias of each query and pooled key, kept as one small table a head and a place in it for each axis."""

from torch import Tensor

from .._layout import is_exporting


def position_bias(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The bias of every pair, read from its table: (heads, H * W, ph * pw).

    bias[:, (i, j), (a, b)] = table[:, rows[i, a], columns[j, b]]; where `rows` and `columns` are weights, the sum over
    the table's rows and columns with these weights.

    Args:
        table: (heads, Th, Tw).
        rows: (H, ph) integers, or (H, ph, Th) weights.
        columns: (W, pw) integers, or (W, pw, Tw) weights.
    """
    return pair_rows(pair_columns(table, columns), rows)


def pair_columns(table: Tensor, columns: Tensor) -> Tensor:
    """The table's columns put where queries and keys of a row of the map want them: (heads, Th, W, pw)."""
    if columns.is_floating_point():
        table = table @ columns.flatten(0, 1).transpose(0, 1).to(table.dtype)
    elif is_exporting():
        return table[:, :, columns]  # a side that is taken apart again would be compared with its parts
    else:
        table = table.index_select(2, columns.flatten())
    return table.reshape(table.shape[0], table.shape[1], columns.shape[0], columns.shape[1])


def pair_rows(table: Tensor, rows: Tensor) -> Tensor:
    """The bias of so many rows of queries: (heads, Th, W, pw) -> (heads, H * W, ph * pw)."""
    heads, _, width, pooled_columns = table.shape
    if rows.is_floating_point():
        table = rows.flatten(0, 1).to(table.dtype) @ table.flatten(2)
    elif is_exporting():
        return table[:, rows].transpose(2, 3).flatten(3).flatten(1, 2)
    else:
        table = table.index_select(1, rows.flatten())
    table = table.reshape(heads, rows.shape[0], rows.shape[1], width, pooled_columns).transpose(2, 3)
    return table.reshape(heads, -1, rows.shape[1] * pooled_columns)
