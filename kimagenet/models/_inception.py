"""The blocks of Inception v2 (Ioffe & Szegedy 2015, arXiv 1502.03167): a 5×5 is two 3×3 in a row.

Imports Keras, so model files import this inside `build`.
"""

from kimagenet.models._layers import Tensor, avg_pool, cbr, concat, max_pool


def mixed(
    x: Tensor, one: int, three: tuple[int, int], double: tuple[int, int], projection: int, *, name: str
) -> Tensor:
    """1×1 | 3×3 | double 3×3 | average pool and projection, side by side. A pair is (reduction, width)."""
    a = cbr(x, one, 1, name=f"{name}_1x1")
    b = _three(x, three, 1, name)
    c = _double(x, double, 1, name)
    d = avg_pool(x, name=f"{name}_pool")
    d = cbr(d, projection, 1, name=f"{name}_pool_proj")
    return concat([a, b, c, d], name=f"{name}_output")


def mixed_stride_2(x: Tensor, three: tuple[int, int], double: tuple[int, int], *, name: str) -> Tensor:
    """3×3 | double 3×3 | max pool, side by side, each ending with stride 2; the pool passes its channels through."""
    b = _three(x, three, 2, name)
    c = _double(x, double, 2, name)
    d = max_pool(x, name=f"{name}_pool")
    return concat([b, c, d], name=f"{name}_output")


def _three(x: Tensor, widths: tuple[int, int], stride: int, name: str) -> Tensor:
    reduction, width = widths
    x = cbr(x, reduction, 1, name=f"{name}_3x3_reduce")
    return cbr(x, width, 3, stride, name=f"{name}_3x3")


def _double(x: Tensor, widths: tuple[int, int], stride: int, name: str) -> Tensor:
    reduction, width = widths
    x = cbr(x, reduction, 1, name=f"{name}_double3x3_reduce")
    x = cbr(x, width, 3, name=f"{name}_double3x3_a")
    return cbr(x, width, 3, stride, name=f"{name}_double3x3_b")
