"""The first convolution in a form that 8-bit kernels are fast at: the same sums, other memory.

A convolution with a long stride over three colour planes gives an integer kernel runs of three
bytes to multiply, and the first layer then takes longer in INT8 than in FP32. Folding ``stride``
neighbouring pixels of a row into channels makes these runs ``stride`` times as long, and in the
channels-last memory that integer kernels work in it moves nothing (a narrower form of the
space-to-depth of Ying et al., "Image Classification at Supercomputer Scale", 2018). Every product
of the old form is in the new one; what is added is multiplied by zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from workbench.export.onnx_file import INPUT

_FEW_CHANNELS = 4
Weights = NDArray[np.float32]


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose first convolution works on folded rows; other models come back as they are.

    Folded is the only reader of the input if it is a convolution over at most four channels whose
    stride along a row is above one and divides the width, without dilation or groups.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = _first_convolution(copy)
    if node is None:
        return copy
    settings = _settings(node)
    stride, (top, left, bottom, right) = settings["strides"][1], settings["pads"]
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    kernel = numpy_helper.to_array(constants[node.input[1]])
    _, channels, height, width = (
        dim.dim_value for dim in copy.graph.input[0].type.tensor_type.shape.dim
    )
    wide, before = _over_groups(kernel, stride, left)
    groups, taps = width // stride, wide.shape[3]
    columns = (width + left + right - kernel.shape[3]) // stride + 1
    after = columns - 1 + taps - groups - before
    if after < 0:
        return copy
    shape = np.array([0, height, groups, stride * channels], np.int64)
    fresh = [
        helper.make_node("Transpose", [INPUT], ["stem_rows"], name="stem_0", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["stem_rows", "stem_shape"], ["stem_groups"], name="stem_1"),
        helper.make_node(
            "Transpose", ["stem_groups"], ["stem_planes"], name="stem_2", perm=[0, 3, 1, 2]
        ),
        helper.make_node(
            "Conv",
            ["stem_planes", "stem_weights", *node.input[2:]],
            list(node.output),
            name=node.name,
            kernel_shape=list(wide.shape[2:]),
            pads=[top, before, bottom, after],
            strides=[settings["strides"][0], 1],
        ),
    ]
    nodes = [*fresh, *(other for other in copy.graph.node if other.name != node.name)]
    kept = [tensor for tensor in copy.graph.initializer if tensor.name != node.input[1]]
    kept += [numpy_helper.from_array(wide, "stem_weights")]
    kept += [numpy_helper.from_array(shape, "stem_shape")]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(kept)
    return copy


def _first_convolution(model: onnx.ModelProto) -> Any | None:
    # Of two readers one would still want the picture unfolded.
    readers = [node for node in model.graph.node if INPUT in node.input]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    if len(readers) != 1 or readers[0].op_type != "Conv" or len(shape) != 4:
        return None
    settings = _settings(readers[0])
    stride, width = settings["strides"][1], shape[3].dim_value
    fits = (
        stride > 1
        and settings["group"] == 1
        and set(settings["dilations"]) == {1}
        and 0 < shape[1].dim_value <= _FEW_CHANNELS
        and width > 0
        and width % stride == 0
        and shape[2].dim_value > 0
    )
    return readers[0] if fits else None


def _settings(node: Any) -> dict[str, Any]:
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    defaults = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
    return {**defaults, **given}


def _over_groups(kernel: Weights, stride: int, left: int) -> tuple[Weights, int]:
    """Weights ``[o, stride * c, rows, taps]`` over groups of pixels, and groups padded on the left.

    Tap ``k`` of a row reads pixel ``stride * i + k - left`` for output ``i``: that is place
    ``(k - left) % stride`` of group ``i + (k - left) // stride``.
    """
    outputs, channels, rows, columns = kernel.shape
    first, last = -left // stride, (columns - 1 - left) // stride
    taps = last - first + 1
    wide = np.zeros((outputs, stride, channels, rows, taps), np.float32)
    for column in range(columns):
        group, place = divmod(column - left, stride)
        wide[:, place, :, :, group - first] = kernel[:, :, :, column]
    return wide.reshape(outputs, stride * channels, rows, taps), -first
