"""Exported files that were changed, or come from others: refused in one line, also with the right checksum."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError
from test_engines import pixels_for, small_model

from convatlas._version import __version__
from convatlas.core.network import Network
from convatlas.engines import onnx_file, onnx_graph, openvino_files
from convatlas.errors import ModelFileError
from convatlas.inference.load import load
from convatlas.weights.modelfile import Header

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

HUGE = 40_000_000_000


@pytest.fixture(scope="module")
def small() -> tuple[Network, Header]:
    return small_model("lenet5_modern")


@pytest.fixture(scope="module")
def graph(small: tuple[Network, Header]) -> Any:
    model = onnx.ModelProto()
    model.ParseFromString(onnx_graph.load_or_export(*small))
    return model


@pytest.fixture(scope="module")
def pair(graph: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The contents of OpenVINO's two files."""
    path = tmp_path_factory.mktemp("pair") / "x.xml"
    openvino_files.write_model(graph, path)
    return path.read_text(), path.with_suffix(".bin").read_bytes()


def copy_of(graph: Any) -> Any:
    model = type(graph)()
    model.CopyFrom(graph)
    return model


def seal_graph(model: Any, path: Path) -> Path:
    onnx_file.add_checksum(model)
    path.write_bytes(model.SerializeToString())
    return path


def seal_pair(text: str, weights: bytes, path: Path) -> Path:
    path.with_suffix(".bin").write_bytes(weights)
    text = openvino_files._with_checksum(text, openvino_files._NO_CHECKSUM)
    path.write_text(openvino_files._with_checksum(text, openvino_files._checksum(text, path.with_suffix(".bin"))))
    return path


def check_refused(path: Path, message: str = "") -> None:
    with pytest.raises(ModelFileError, match=message or None) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_unchanged_files_are_read(
    graph: Any, pair: tuple[str, bytes], small: tuple[Network, Header], tmp_path: Path
) -> None:
    for path in (seal_graph(copy_of(graph), tmp_path / "x.onnx"), seal_pair(*pair, tmp_path / "x.xml")):
        model = load(path)
        assert model.header == small[1]
        assert model.engine.outputs(pixels_for(small[1])).shape == (3, 7)


def test_graphs_have_the_oldest_format_of_their_operators(graph: Any) -> None:
    assert (graph.ir_version, [(each.domain, each.version) for each in graph.opset_import]) == (9, [("", 20)])
    onnx.checker.check_model(graph, full_check=True)


def test_cached_graphs_belong_to_a_version_and_a_structure(
    small: tuple[Network, Header], graph: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(onnx_graph, "export_graph", lambda *_: graph)
    network, header = small_model("lenet5_modern")

    def count() -> int:
        onnx_graph.load_or_export(network, header)
        return len(list((tmp_path / "graphs").iterdir()))

    assert (count(), count()) == (1, 1)
    monkeypatch.setattr(onnx_graph, "__version__", __version__ + ".1")
    assert count() == 2
    network.head.append(torch.nn.ReLU())  # type: ignore[operator]
    assert count() == 3


# --- the header

HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "fewer classes": (lambda h: h["task"].update(classes=list("abcdef")), "outputs must be"),
    "more classes": (lambda h: h["task"].update(classes=list("abcdefgh")), "outputs must be"),
    "type of pixels": (lambda h: h["preprocessing"].update(window=[0.0, 1.0]), "inputs .* must be pixels float"),
    "channels": (lambda h: h["preprocessing"].update(mean=[0.1] * 3, std=[0.3] * 3), "pixels uint8 .any, 3, 32"),
    "resolution": (
        lambda h: (h["spec"].update(resolution=40), h["preprocessing"].update(resize=36, crop=36)), "40, 40",
    ),
    "temperature": (lambda h: h["calibration"].update(temperature=2.0), "the task and calibration in the header"),
    "task": (lambda h: h["task"].update(type="MultilabelClassification"), "the task and calibration in the header"),
    "temperature of zero": (lambda h: h["calibration"].update(temperature=0), "temperature"),
    "version": (lambda h: h.update(version=2), "upgrade"),
    "no task": (lambda h: h.pop("task"), "task is missing"),
    "text as spec": (lambda h: h.update(spec="x"), "spec"),
}  # fmt: skip

TEXTS = {
    "no object": "5",
    "nothing": "",
    "5,000 digits": '{"version": ' + "9" * 5000 + "}",
    "deep": "[" * 100_000,
    "deep and closed": '{"version": 1, "name": ' + "[" * 900 + "]" * 900 + "}",
    "infinite": '{"version": 1e999}',
    "not a number": '{"version": NaN}',
}  # fmt: skip


def changed_header(graph: Any, case: str) -> tuple[str, str]:
    """Return the text of a changed header, and what the error must match."""
    if case in TEXTS:
        return TEXTS[case], ""
    header = json.loads(next(entry.value for entry in graph.metadata_props if entry.key == "convatlas"))
    change, message = HEADERS[case]
    change(header)
    return json.dumps(header), message


@pytest.mark.parametrize("case", [*HEADERS, *TEXTS])
def test_headers_that_do_not_fit_the_graph_are_refused(
    graph: Any, pair: tuple[str, bytes], tmp_path: Path, case: str
) -> None:
    text, message = changed_header(graph, case)
    model = copy_of(graph)
    next(entry for entry in model.metadata_props if entry.key == "convatlas").value = text
    check_refused(seal_graph(model, tmp_path / "x.onnx"), message)
    xml, weights = pair
    xml = re.sub('<convatlas value="[^"]*"', lambda _: f'<convatlas value="{escape(text, {chr(34): "&quot;"})}"', xml)
    check_refused(seal_pair(xml, weights, tmp_path / "x.xml"), message)


# --- ONNX


def bit_of_the_metadata(model: Any) -> bytes:
    data = bytearray(model.SerializeToString())
    data[data.index(b'"version"') + 3] ^= 0x80
    return bytes(data)


def append(model: Any, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
    model.graph.node.append(onnx.helper.make_node(operator, inputs, [output], f"node {output}", **attributes))


def huge(model: Any, operator: str) -> None:
    """Append nodes that compute 4e10 numbers, or a number of them that depends on the image."""
    numbers = {"shape": [HUGE], "pads": [0] * 7 + [HUGE], "sizes": [1, 1, 200_000, 200_000], "axes": [0]}
    for name, values in numbers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one"))
    append(model, "Cast", ["pixels"], "floats", to=onnx.TensorProto.FLOAT)
    if operator == "Conv":
        append(model, "Conv", ["floats", "one"], "huge", pads=[100_000] * 4)
    elif operator == "Pad":
        append(model, "Pad", ["floats", "pads"], "huge")
    elif operator == "Resize":
        append(model, "Resize", ["floats", "", "", "sizes"], "huge")
    elif operator == "ConstantOfShape of the pixels":
        append(model, "Cast", ["pixels"], "integers", to=onnx.TensorProto.INT64)
        append(model, "ReduceSum", ["integers"], "total", keepdims=0)
        append(model, "Mul", ["total", "total"], "square")
        append(model, "Unsqueeze", ["square", "axes"], "size")
        append(model, "ConstantOfShape", ["size"], "huge")
    else:
        append(model, operator, ["one", "shape"] if operator == "Expand" else ["shape"], "huge")


def weight(model: Any) -> Any:
    return next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)


def constant_in_another_file(model: Any) -> None:
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    append(model, "Constant", [], "secret", value=tensor)


def subgraph(model: Any) -> None:
    append(model, "Relu", ["outputs"], "relu", body=onnx.GraphProto(name="g"))


def shape_of_outputs(model: Any) -> None:
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 6


def classes_of_outputs(model: Any) -> None:
    """The header and the declared outputs agree, the graph does not."""
    shape_of_outputs(model)
    entry = next(entry for entry in model.metadata_props if entry.key == "convatlas")
    entry.value = entry.value.replace(', "g"]', "]")


GRAPHS: dict[str, Callable[[Any], Any]] = {
    "no type": lambda m: m.graph.input[0].ClearField("type"),
    "floats": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1),
    "one image": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1),
    "two inputs": lambda m: m.graph.input.append(m.graph.input[0]),
    "no nodes": lambda m: m.graph.ClearField("node"),
    "node removed": lambda m: m.graph.node.pop(4),
    "node twice": lambda m: m.graph.node.append(m.graph.node[3]),
    "unknown value": lambda m: m.graph.node[3].input.__setitem__(0, "nothing"),
    "no attributes": lambda m: [n.ClearField("attribute") for n in m.graph.node if n.op_type == "MaxPool"],
    "stride of 0": lambda m: [
        a.ints.__setitem__(0, 0) for n in m.graph.node for a in n.attribute if a.name == "strides"
    ],
    "new operator set": lambda m: setattr(m.opset_import[0], "version", 99),
    "new format": lambda m: setattr(m, "ir_version", 999),
    "short weight": lambda m: setattr(weight(m), "raw_data", weight(m).raw_data[:-3]),
    "empty weight": lambda m: setattr(weight(m), "raw_data", b""),
    "long weight": lambda m: setattr(weight(m), "raw_data", weight(m).raw_data + b"1234"),
    "huge weight": lambda m: weight(m).dims.append(2**40),
    "negative weight": lambda m: weight(m).dims.__setitem__(0, -1),
    "type of a weight": lambda m: setattr(weight(m), "data_type", 11),
    "NaN": lambda m: setattr(weight(m), "raw_data", np.full(len(weight(m).raw_data) // 4, np.nan, "<f4").tobytes()),
    "sparse weight": lambda m: m.graph.sparse_initializer.add().values.dims.append(2**40),
    "constant in another file": constant_in_another_file,
    "subgraph": subgraph,
    "function": lambda m: m.functions.add(name="f"),
    "shape of outputs": shape_of_outputs,
    "classes of outputs": classes_of_outputs,
    "no checksum of classes": lambda m: m.metadata_props.add(key="convatlas", value="{}"),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_changed_graphs_are_refused(graph: Any, tmp_path: Path, case: str) -> None:
    model = copy_of(graph)
    GRAPHS[case](model)
    check_refused(seal_graph(model, tmp_path / "x.onnx"))


@pytest.mark.parametrize(
    "operator", ["ConstantOfShape", "Expand", "Pad", "Resize", "Conv", "Range", "ConstantOfShape of the pixels"]
)
def test_graphs_that_need_too_much_memory_are_refused(graph: Any, tmp_path: Path, operator: str) -> None:
    model = copy_of(graph)
    huge(model, operator)
    check_refused(seal_graph(model, tmp_path / "x.onnx"), "at most|cannot be computed|does not export|not consistent")


def test_metadata_that_are_not_utf8_are_refused(graph: Any, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(bit_of_the_metadata(graph))
    check_refused(tmp_path / "x.onnx", "UTF-8|damaged")


# --- OpenVINO


def add_huge_layer(xml: str) -> str:
    return xml.replace('pads_begin="0, 0"', 'pads_begin="100000, 100000"', 1)


PAIRS: dict[str, Callable[[str, bytes], tuple[str, bytes]]] = {
    "no weights": lambda xml, weights: (xml, b""),
    "short weights": lambda xml, weights: (xml, weights[:-5]),
    "malformed": lambda xml, weights: (xml.replace("</net>", ""), weights),
    "layer removed": lambda xml, weights: (re.sub(r'<layer id="3".*?</layer>', "", xml, flags=re.S), weights),
    "edge removed": lambda xml, weights: (re.sub("<edge [^>]*/>", "", xml, count=3), weights),
    "circle": lambda xml, weights: (xml.replace('from-layer="3" ', 'from-layer="63" ', 1), weights),
    "loop": lambda xml, weights: (xml.replace('type="ReLU"', 'type="Loop"', 1), weights),
    "unknown layer": lambda xml, weights: (xml.replace('type="ReLU"', 'type="Nothing"', 1), weights),
    "5,000 digits": lambda xml, weights: (xml.replace('offset="8"', f'offset="{"9" * 5000}"', 1), weights),
    "offset": lambda xml, weights: (xml.replace('offset="8"', 'offset="99999999"', 1), weights),
    "negative size": lambda xml, weights: (xml.replace('size="200"', 'size="-200"', 1), weights),
    "text as size": lambda xml, weights: (xml.replace('size="200"', 'size="many"', 1), weights),
    "stride of 0": lambda xml, weights: (xml.replace('strides="1, 1"', 'strides="0, 0"', 1), weights),
    "type of pixels": lambda xml, weights: (xml.replace('element_type="u8"', 'element_type="f64"', 1), weights),
    "shape of pixels": lambda xml, weights: (xml.replace('shape="?,1,32,32"', 'shape="?,3,32,32"', 1), weights),
    "one image": lambda xml, weights: (xml.replace('shape="?,1,32,32"', 'shape="1,1,32,32"', 1), weights),
    "name of outputs": lambda xml, weights: (xml.replace('names="outputs"', 'names="others"'), weights),
    "huge": lambda xml, weights: (add_huge_layer(xml), weights),
    "NaN": lambda xml, weights: (xml, np.full(len(weights) // 4, np.nan, "<f4").tobytes()),
    "deep": lambda xml, weights: (xml.replace("<rt_info>", "<rt_info>" + "<a>" * 99 + "</a>" * 99, 1), weights),
    "entities": lambda xml, weights: (xml.replace("<net", '<!DOCTYPE x [<!ENTITY a "b">]><net', 1), weights),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_changed_openvino_files_are_refused(pair: tuple[str, bytes], tmp_path: Path, case: str) -> None:
    xml, weights = PAIRS[case](*pair)
    assert (xml, weights) != pair
    check_refused(seal_pair(xml, weights, tmp_path / "x.xml"))


def flip_a_bit(data: bytes, seed: int) -> bytes:
    random = np.random.default_rng(seed)
    changed = bytearray(data)
    changed[int(random.integers(0, len(data)))] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(16))
def test_flipped_bits_are_refused_or_change_only_values(
    graph: Any, pair: tuple[str, bytes], small: tuple[Network, Header], tmp_path: Path, seed: int
) -> None:
    """With the right checksum; without it all are refused."""
    model, paths = type(graph)(), []
    with suppress(DecodeError, TypeError):  # no longer a graph, or metadata that are not UTF-8
        model.ParseFromString(flip_a_bit(graph.SerializeToString(), seed))
        paths.append(seal_graph(model, tmp_path / "x.onnx"))
    with suppress(UnicodeDecodeError):
        paths.append(seal_pair(flip_a_bit(pair[0].encode(), seed).decode(), pair[1], tmp_path / "x.xml"))
    for path in paths:
        try:
            loaded = load(path)
        except ModelFileError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
        else:
            assert loaded.engine.outputs(pixels_for(small[1])).shape == (3, 7)
