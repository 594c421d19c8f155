"""A network as an ONNX file, which is what runs on a CPU: python -m training.onnx_file core/weights/compact-x2

The file keeps its weights in fp16, as the published safetensors do; runtimes make fp32 of them when they open it. Any
network of `core.networks` can be exported whose layers follow from the size of the input alone.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core import models
from core.engine.pytorch import build

_OPSET = 17  # the oldest that has all that is needed: the more runtimes can read it


@torch.no_grad()
def write_onnx(net: nn.Module, file: Path) -> None:
    """Export a network.

    Args:
        net: (1, 3, h, w) float32 "x" to (1, 3, scale * h, scale * w) float32 "y", in fp32 on the CPU.
        file: where to write; it appears there only when complete.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    part = file.with_suffix(".part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the old one, which needs no further packages
        torch.onnx.export(
            net,
            (torch.rand(1, 3, 24, 32),),
            part,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {2: "h", 3: "w"}, "y": {2: "large_h", 3: "large_w"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    graph = onnx.load(part)
    casts = []
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > 1 and np.array_equal(values, values.astype(np.float16)):
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
            casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    onnx.checker.check_model(graph)
    part.write_bytes(graph.SerializeToString())
    part.replace(file)


def export_directory(directory: Path) -> None:
    """Write the ONNX file of a model directory beside its weights."""
    write_onnx(build(models.spec_of(str(directory)), directory), directory / models.ONNX_FILE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=f"Write {models.ONNX_FILE} beside the weights of model directories.")
    parser.add_argument("directories", nargs="+", type=Path)
    for directory in parser.parse_args().directories:
        export_directory(directory)


if __name__ == "__main__":
    main()
