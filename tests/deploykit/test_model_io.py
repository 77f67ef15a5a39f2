"""Reading and writing models: what is refused, and what must survive."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import model_io
from deploykit.errors import UnsupportedModel, UsageError
from tests.deploykit.conftest import make_network


def saved(path, change):
    model = make_network()
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_one_file_stays_one_file(network, tmp_path):
    source = model_io.load(network)
    assert not source.is_external
    assert source.sha256 == hashlib.sha256(network.read_bytes()).hexdigest()
    out = tmp_path / "model.onnx"
    model_io.save(source.model, out, external=source.is_external)
    before, after = onnx.load(network), onnx.load(out)
    assert after.ir_version == before.ir_version == 8
    for mine, theirs in zip(before.graph.initializer, after.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            numpy_helper.to_array(mine), numpy_helper.to_array(theirs)
        )
    assert not model_io.data_file(out).exists()
    assert model_io.saved_bytes(out) == out.stat().st_size


def test_external_data_stays_external(external_network, tmp_path):
    source = model_io.load(external_network)
    assert [file.name for file in source.data_files] == ["weights.bin"]
    out = tmp_path / "model.onnx"
    model_io.save(source.model, out, external=source.is_external, sources=source.files)
    assert model_io.data_file(out).stat().st_size > 64 * 256 * 4
    assert model_io.load(out).is_external
    weight = {array.name: array for array in onnx.load(out).graph.initializer}["w1"]
    expected = {array.name: array for array in make_network().graph.initializer}["w1"]
    np.testing.assert_array_equal(
        numpy_helper.to_array(weight), numpy_helper.to_array(expected)
    )


def test_the_hash_covers_the_data_file(external_network):
    before = model_io.load(external_network).sha256
    data = external_network.parent / "weights.bin"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert model_io.load(external_network).sha256 != before


@pytest.mark.parametrize("external", [False, True])
def test_a_source_is_never_written_over(external_network, external):
    source = model_io.load(external_network)
    before = external_network.read_bytes()
    with pytest.raises(UsageError, match="the model was read from"):
        model_io.save(source.model, external_network, external=external, sources=source.files)
    assert external_network.read_bytes() == before


def test_the_data_file_of_a_source_is_never_written_over(tmp_path):
    path = tmp_path / "a.onnx"
    onnx.save_model(
        make_network(),
        path,
        save_as_external_data=True,
        location="b.onnx.data",
        size_threshold=64,
    )
    source = model_io.load(path)
    with pytest.raises(UsageError, match=r"b\.onnx\.data"):
        model_io.save(source.model, tmp_path / "b.onnx", external=True, sources=source.files)


def test_weights_that_are_being_looked_at_do_not_hinder_saving(external_network, tmp_path):
    source = model_io.load(external_network)
    views = [value.const_value.numpy() for value in source.model.graph.initializers.values()]
    model_io.save(source.model, tmp_path / "model.onnx", external=True, sources=source.files)
    saved = model_io.load(tmp_path / "model.onnx").model.graph.initializers.values()
    for view, value in zip(views, saved, strict=True):
        np.testing.assert_array_equal(view, value.const_value.numpy())


def test_a_newer_ir_version_is_lowered_on_save_only(network, tmp_path):
    model = model_io.load(network).model
    model.ir_version = model_io.MAX_IR_VERSION + 1
    model_io.save(model, tmp_path / "model.onnx", external=False)
    assert onnx.load(tmp_path / "model.onnx").ir_version == model_io.MAX_IR_VERSION
    assert model.ir_version == model_io.MAX_IR_VERSION + 1


def test_a_weight_that_only_a_subgraph_reads_survives_an_old_ir_version(tmp_path):
    """Below version 4 runtimes look for initializers among the inputs; in the main graph alone they forgive."""
    import onnxruntime

    def branch(name, negated):
        made = helper.make_node("Neg" if negated else "Identity", ["w"], [name])
        return helper.make_graph([made], name, [], [helper.make_empty_tensor_value_info(name)])

    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("t", False), else_branch=branch("e", True)
    )
    told = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    weight = numpy_helper.from_array(np.float32([1, 2]), "w")
    graph = helper.make_graph([choice], "main", told, out, [weight])
    old = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 13)])
    (tmp_path / "old.onnx").write_bytes(old.SerializeToString())
    model = model_io.load(tmp_path / "old.onnx").model
    model_io.save(model, tmp_path / "new.onnx", external=False)
    session = onnxruntime.InferenceSession(tmp_path / "new.onnx")
    (answer,) = session.run(None, {"c": np.array(False)})
    np.testing.assert_array_equal(answer, [-1, -2])
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])
    old.graph.input.append(listed)  # as version 3 wants it
    (tmp_path / "old.onnx").write_bytes(old.SerializeToString())
    model = model_io.load(tmp_path / "old.onnx").model
    model_io.save(model, tmp_path / "newer.onnx", external=False)
    assert onnx.load(tmp_path / "newer.onnx").ir_version == 3


def test_the_data_of_a_weight_counts_more_than_what_is_said_of_it(tmp_path):
    def lie(model):
        model.graph.value_info.append(
            helper.make_tensor_value_info("b1", TensorProto.FLOAT, [])
        )

    value = model_io.load(saved(tmp_path / "m.onnx", lie)).model.graph.initializers["b1"]
    assert list(value.shape) == [64]


def make_sparse(model):
    values = numpy_helper.from_array(np.ones(2, np.float32), "thin")
    indices = numpy_helper.from_array(np.array([0, 3]), "where")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def make_sparse_branch(model):
    inner = helper.make_graph([], "inner", [], [])
    make_sparse(holder := helper.make_model(inner))
    model.graph.node.append(
        helper.make_node("If", ["c"], ["z"], "if", then_branch=holder.graph)
    )


def place_data(model, location, offset="0", length="16"):
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)


def read_nothing(model):
    model.graph.node[1].input[0] = "zz"


def close_cycle(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def become_narrow_convolution(model):
    weight = numpy_helper.from_array(np.ones((4, 15, 1, 1), np.float32), "narrow")
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, 8, 8])
        for name, count in (("x", 32), ("y", 4))
    )
    node = helper.make_node("Conv", ["x", "narrow"], ["y"], "conv", group=2)
    model.graph.CopyFrom(helper.make_graph([node], "g", [x], [y], [weight]))


def add_bad_product(model):
    wide = numpy_helper.from_array(np.ones((255, 300), np.float32), "wide")
    model.graph.initializer.append(wide)
    model.graph.node.append(helper.make_node("MatMul", ["x", "wide"], ["z"], "product"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (read_nothing, "reads 'zz', which nothing in the model makes"),
        (close_cycle, "has a cycle: node 'head' \\(Gemm\\) waits for its own result"),
        (
            become_narrow_convolution,
            "'narrow' of node 'conv' .* takes 30 channels, and 'x' has 32",
        ),
        (add_bad_product, "no valid model: node 'product' \\(MatMul\\): "),
        (make_sparse, "'thin' first.*sparse_initializer.*Store them densely"),
        (make_sparse_branch, "sparse_initializer"),
        (
            lambda model: place_data(model, "gone.bin"),
            "'far' of .* lies in 'gone.bin', which is missing",
        ),
        (lambda model: place_data(model, "../far.bin"), "outside the model's folder"),
        (lambda model: place_data(model, "/etc/hostname"), "outside the model's folder"),
        (lambda model: place_data(model, "m.onnx", "99999999"), "has only .* bytes"),
        (lambda model: setattr(model, "ir_version", 99), "IR version 99"),
        (lambda model: setattr(model.opset_import[0], "version", 999), "operator set 999"),
        (lambda model: model.ClearField("graph"), "is not an ONNX model"),
    ],
)
def test_what_would_go_wrong_silently_is_refused(tmp_path, change, message):
    path = saved(tmp_path / "m.onnx", change)
    with pytest.raises(UnsupportedModel, match=message):
        model_io.load(path)


def test_nodes_in_any_order_are_read(tmp_path):
    def turn(model):
        nodes = list(model.graph.node)[::-1]
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)

    source = model_io.load(saved(tmp_path / "m.onnx", turn))
    assert len(source.model.graph) == len(make_network().graph.node)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX model"),
        (b"\x00\x01garbage\xff" * 9, "is not an ONNX model"),
        (b"PK\x03\x04 and so on", "PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_other_files_are_recognised(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=message):
        model_io.load(path)


def test_a_data_file_reached_by_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    path = saved(folder / "m.onnx", lambda model: place_data(model, "link.bin"))
    with pytest.raises(UnsupportedModel, match="outside the model's folder"):
        model_io.load(path)


def test_a_missing_file_is_a_usage_error():
    with pytest.raises(UsageError, match="does not exist"):
        model_io.load(pathlib.Path("nowhere.onnx"))
