"""ONNX graphs of networks: export and cache."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.engines.deploy import (
    OUTPUTS,
    PIXELS,
    PROBABILITIES,
    RESULT_FORMS,
    SCORE_THRESHOLD,
    DeployModule,
    describe_header,
    example_pixels,
    result_names,
)
from convatlas.engines.folding import fold_norms
from convatlas.engines.onnx_file import MAX_GRAPH_BYTES, add_checksum, read_graph
from convatlas.errors import ConvatlasError, EngineError, ModelFileError, brief
from convatlas.models.own_module import OwnNetwork
from convatlas.system.cache import LruFolder, cache_folder
from convatlas.system.extras import import_optional
from convatlas.system.files import atomic
from convatlas.weights.modelfile import Header, digest, header_text

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
"""Version of the ONNX operator set that graphs are written in."""

IR_VERSION = 9
"""Version of the ONNX file format, the oldest one for this operator set (onnx 1.15, ONNX Runtime 1.17)."""

MAX_CACHE_BYTES = 4 * 2**30
"""Maximum size of the cached graphs; the least recently used ones are deleted."""


def export_graph(network: Network, header: Header) -> ModelProto:
    """Return the ONNX graph of a network for any batch size, with `describe_header` and a checksum as metadata.

    That of a detector is for one image of any size. Raises EngineError for a network that cannot be exported.
    """
    onnx = import_optional("onnx", "convatlas[onnx]")
    import_optional("onnxscript", "convatlas[onnx]")
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")
    if device != "cpu":
        raise EngineError(
            f"{header.name}: device must be cpu for an ONNX export, got {device}; load it with device='cpu'"
        )
    folded = fold_norms(network).float()
    try:
        with torch.no_grad(), _quiet_exporter():
            export = _export_detector if header.preprocessing.is_whole else _export_classifier
            model = export(folded, header)
    except Exception as error:  # the exporter has dozens of error types
        raise EngineError(f"{header.name}: cannot be exported to ONNX ({brief(error)})") from error
    model.ir_version = IR_VERSION
    graph = model.graph
    for each in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del each.metadata_props[:]  # file names and lines of Python; newer than the format
    assert len({node.name for node in graph.node}) == len(graph.node)
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise EngineError(
            f"{header.name}: the ONNX graph must be at most 2 GiB, got {model.ByteSize() / 2**30:.1f} GiB"
        )
    onnx.helper.set_model_props(model, describe_header(header))
    add_checksum(model)
    return model


def _export_classifier(network: Network, header: Header) -> ModelProto:
    program: Any = torch.onnx.export(
        DeployModule(network, header).eval(), (example_pixels(header),), dynamo=True, dynamic_shapes=({0: "batch"},),
        opset_version=OPSET, input_names=[PIXELS], output_names=[PROBABILITIES, OUTPUTS], verbose=False,
    )  # fmt: skip
    model: ModelProto = program.model_proto
    return model


def _export_detector(network: Network, header: Header) -> ModelProto:
    """Return the graph of a detector; its score threshold is an input with a default value."""
    onnx = import_optional("onnx", "convatlas[onnx]")
    # imports torchvision, which classifiers do not need
    from convatlas.engines.detector_graph import TRANSLATIONS, DetectorModule, export_program

    module = DetectorModule(network, header.preprocessing)
    program: Any = torch.onnx.export(
        export_program(module, header.preprocessing.dtype), dynamo=True, opset_version=OPSET,
        input_names=[PIXELS, SCORE_THRESHOLD], output_names=result_names(header), verbose=False,
        custom_translation_table=TRANSLATIONS,
    )  # fmt: skip
    model: ModelProto = program.model_proto
    graph = model.graph
    threshold = torch.tensor(module.roi_heads.score_thresh).numpy()
    graph.initializer.append(onnx.numpy_helper.from_array(threshold, SCORE_THRESHOLD))
    del graph.value_info[:]  # their sizes have names that say nothing
    _, *sides = graph.input[0].type.tensor_type.shape.dim
    names: list[tuple[Any, str | int]] = [*zip(sides, ("height", "width"), strict=True)]
    for value in graph.output:
        names += zip(value.type.tensor_type.shape.dim, RESULT_FORMS[value.name].shape, strict=True)
    for size, name in names:
        size.Clear()
        if isinstance(name, str):
            size.dim_param = name
        else:
            size.dim_value = name
    return model


def load_or_export(network: Network, header: Header) -> bytes:
    """Return the serialized graph of a network from the cache, or export it (a few seconds) and cache it.

    The graph of an own module depends on its code, too, and is not cached.
    """
    if isinstance(network, OwnNetwork):
        return bytes(export_graph(network, header).SerializeToString())
    cache = LruFolder(cache_folder() / "graphs", ".onnx", MAX_CACHE_BYTES)
    depends = f"{header_text(header)} {network} {OPSET} {torch.__version__} {__version__}"
    name = digest(depends, network.state_dict())[:32]
    path = cache.path / f"{name}.onnx"
    if path.is_file():
        with suppress(ModelFileError):  # a damaged entry is replaced
            cache.mark_used(path)
            return bytes(read_graph(path)[1].SerializeToString())
    graph = bytes(export_graph(network, header).SerializeToString())
    with suppress(ConvatlasError, OSError):  # without room or permission the graph is not cached
        cache.make_room(len(graph))
        with atomic(path) as file:
            file.write(graph)
    return graph


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the warnings of torch's ONNX exporter, and no others."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
