"""The geometry of sliding windows: Conv, ConvTranspose and the pools, and their sums over constant inputs.

Along one spatial axis an output position p reads, through tap k of the kernel,

    Conv, pools      input position  p * stride - begin + k * dilation
    ConvTranspose    input position  (p + begin - k * dilation) / stride, where that is whole

and nothing where that lies outside of the input. A constant input therefore gives a constant output only if every
position reads the same taps; at padded borders, and between the steps of a strided ConvTranspose, it does not.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from passes.analysis.compact import Array

__all__ = ["Axis", "find_window", "pool_map", "slide"]

# Multiply-adds above which a map is not worth its computation; the channel is then taken for varying.
_WORK_LIMIT = 400_000_000


@dataclasses.dataclass(frozen=True)
class Axis:
    """One spatial axis of a sliding window.

    Attributes:
        size: positions of the input.
        out: positions of the output.
        kernel: taps.
        stride: step between windows (between inputs for a transposed window).
        dilation: step between taps.
        begin: padding before the first position; may be negative.
        end: padding after the last position.
        extra: output padding of a transposed window.
        symbolic: whether the sizes are stand-ins.
        floating: whether the padding depends on the size of the input.
        transposed: whether the window writes (ConvTranspose) instead of reading.
    """

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    extra: int
    symbolic: bool
    floating: bool
    transposed: bool

    @property
    def span(self) -> int:
        """Positions from the first tap to the last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def borderless(self) -> bool:
        """Whether no window is cut off at a border, at any size of the input."""
        if self.symbolic and self.floating and self.span > 1:
            return False
        if self.begin or self.end or self.extra:
            return False
        return not self.transposed or self.span <= self.stride

    @property
    def flat(self) -> bool:
        """Whether every output position reads all taps, at any size of the input."""
        return self.borderless and (not self.transposed or self.kernel == self.stride == 1)

    def coverage(self) -> Array:
        """Tell which taps of each output position read inside the input: bool, shape `(out, kernel)`."""
        position = np.arange(self.out)[:, None]
        offset = np.arange(self.kernel)[None] * self.dilation
        if self.transposed:
            read, rest = np.divmod(position + self.begin - offset, self.stride)
            inside: Array = (rest == 0) & (read >= 0) & (read < self.size)
        else:
            read = position * self.stride - self.begin + offset
            inside = (read >= 0) & (read < self.size)
        return inside


def find_window(
    node: ir.Node,
    kernel: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    symbolic: Sequence[bool],
) -> tuple[Axis, ...]:
    """Resolve the attributes of a Conv, ConvTranspose or pool into one `Axis` a spatial axis.

    Args:
        node: the node.
        kernel: taps along each spatial axis.
        before: spatial sizes of the input.
        after: spatial sizes of the output.
        symbolic: which spatial sizes are stand-ins, in the input or the output.
    """
    rank = len(kernel)
    transposed = node.op_type == "ConvTranspose"
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = node.attributes.get_ints("pads", [0] * 2 * rank)
    extras = node.attributes.get_ints("output_padding", [0] * rank)
    mode = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    sized = transposed and "output_shape" in node.attributes
    axes = []
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        begin, end = pads[axis], pads[axis + rank]
        floating = sized or mode.startswith("SAME")
        if mode == "VALID" and not sized:
            begin = end = 0
        elif floating:
            if transposed:
                full = strides[axis] * (before[axis] - 1) + extras[axis] + span
                total = max(full - after[axis], 0)
            else:
                total = max((after[axis] - 1) * strides[axis] + span - before[axis], 0)
            small = total // 2
            # With an odd total SAME_UPPER puts the larger half at the end, everything else at the beginning;
            # a Conv knows no "everything else".
            begin, end = (
                (small, total - small) if mode == "SAME_UPPER" else (total - small, small)
            )
        axes.append(
            Axis(
                size=before[axis],
                out=after[axis],
                kernel=kernel[axis],
                stride=strides[axis],
                dilation=dilations[axis],
                begin=begin,
                end=end,
                extra=extras[axis] if transposed else 0,
                symbolic=symbolic[axis],
                floating=floating,
                transposed=transposed,
            )
        )
    return tuple(axes)


def slide(weight: Array, inputs: Array, window: Sequence[Axis]) -> Array | None:
    """Slide a kernel over inputs that are known, each row over inputs of its own.

    Args:
        weight: float64, shape `(rows, inputs, *kernel)`.
        inputs: float64, compact, shape `(rows or 1, inputs, *spatial)`; each spatial axis full or 1.
        window: one entry a spatial axis.

    Returns:
        the sums, compact, shape `(rows, *out)`; None if they depend on a size that is not known, or would
        cost too much.
    """
    uniform = [size == 1 for size in inputs.shape[2:]]
    for axis, same in zip(window, uniform, strict=True):
        if axis.symbolic and not (same and axis.borderless):
            return None
    flat = [same and axis.flat for axis, same in zip(window, uniform, strict=True)]
    if all(uniform):
        sums: Array = (weight * inputs).sum(axis=1)
        for at, axis in enumerate(window, start=1):
            if flat[at - 1]:
                sums = sums.sum(axis=at, keepdims=True)
            else:
                moved = np.moveaxis(sums, at, -1) @ axis.coverage().T.astype(np.float64)
                sums = np.moveaxis(moved, -1, at)
        return sums
    return _slide_maps(weight, inputs, window, flat)


def _slide_maps(
    weight: Array, inputs: Array, window: Sequence[Axis], flat: Sequence[bool]
) -> Array | None:
    """Slide over inputs that vary in space, by one multiply-add a tap."""
    for at, is_flat in enumerate(flat, start=2):
        if is_flat:
            weight = weight.sum(axis=at, keepdims=True)
    out = [1 if is_flat else axis.out for axis, is_flat in zip(window, flat, strict=True)]
    if weight.size * math.prod(out) > _WORK_LIMIT:
        return None
    read = _prepare(inputs, window, flat, fill=0.0)
    result: Array = np.zeros((weight.shape[0], *out))
    for taps in itertools.product(*(range(size) for size in weight.shape[2:])):
        piece = read[_slices(window, flat, taps)]
        column = weight[_mirror(window, weight.shape[2:], taps)]
        if piece.shape[0] == 1 and piece.shape[1] > 1:
            result += np.tensordot(column, piece[0], axes=(1, 0))
        else:
            result += np.einsum(
                "ri,ri...->r...",
                column,
                np.broadcast_to(piece, (len(column), *piece.shape[1:])),
            )
    return result


def pool_map(inputs: Array, window: Sequence[Axis]) -> Array | None:
    """Take the largest number of each window of inputs that are known and vary in space.

    Args:
        inputs: compact, shape `(batch, channels, *spatial)`.
        window: one entry a spatial axis.

    Returns:
        compact, shape `(batch, channels, *out)`; None if it depends on a size that is not known.
    """
    flat = [size == 1 for size in inputs.shape[2:]]
    if any(axis.symbolic and not same for axis, same in zip(window, flat, strict=True)):
        return None
    read = _prepare(inputs, window, flat, fill=-math.inf)
    kernel = [1 if is_flat else axis.kernel for axis, is_flat in zip(window, flat, strict=True)]
    pieces = [
        read[_slices(window, flat, taps)]
        for taps in itertools.product(*(range(size) for size in kernel))
    ]
    return np.asarray(np.maximum.reduce(pieces))


def _prepare(
    inputs: Array, window: Sequence[Axis], flat: Sequence[bool], *, fill: float
) -> Array:
    """Spread, dilate and pad inputs so that every tap of every window is a slice of the result."""
    for at, (axis, is_flat) in enumerate(zip(window, flat, strict=True), start=2):
        if is_flat:
            continue
        step = axis.stride if axis.transposed else 1
        begin = axis.span - 1 - axis.begin if axis.transposed else axis.begin
        reach = axis.out if axis.transposed else (axis.out - 1) * axis.stride + 1
        shape = list(inputs.shape)
        shape[at] = reach + axis.span - 1
        spread: Array = np.full(shape, fill)
        # Input position i lands at begin + i * step; what falls off either end is cropped.
        first = max(0, -(begin // step)) if begin < 0 else 0
        last = min(axis.size, (shape[at] - 1 - begin) // step + 1)
        if last > first:
            target = slice(begin + first * step, begin + (last - 1) * step + 1, step)
            whole = np.broadcast_to(inputs, [*shape[:at], axis.size, *shape[at + 1 :]])
            spread[(slice(None),) * at + (target,)] = whole[
                (slice(None),) * at + (slice(first, last),)
            ]
        inputs = spread
    return inputs


def _slices(
    window: Sequence[Axis], flat: Sequence[bool], taps: Sequence[int]
) -> tuple[slice, ...]:
    """What one tap reads for all output positions, in the result of `_prepare`."""
    found = [slice(None), slice(None)]
    for axis, is_flat, tap in zip(window, flat, taps, strict=True):
        if is_flat:
            found.append(slice(None))
            continue
        step = 1 if axis.transposed else axis.stride
        start = tap * axis.dilation
        found.append(slice(start, start + (axis.out - 1) * step + 1, step))
    return tuple(found)


def _mirror(
    window: Sequence[Axis], kernel: Sequence[int], taps: Sequence[int]
) -> tuple[slice | int, ...]:
    """Turn the kernel of a transposed window around: written backwards, it reads forwards."""
    found = (
        size - 1 - tap if axis.transposed else tap
        for axis, size, tap in zip(window, kernel, taps, strict=True)
    )
    return slice(None), slice(None), *found
