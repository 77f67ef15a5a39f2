import math

import numpy as np
import onnx.parser
import pytest

from deploykit import validate as module
from deploykit.errors import ModelError, UsageError
from deploykit.runtimes import TensorSpec
from deploykit.validate import find_inputs, generate_inputs, load_inputs, validate


@pytest.fixture
def write(tmp_path):
    def write(name, graph):
        header = '<ir_version: 8, opset_import: ["" : 18]>'
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(onnx.parser.parse_model(f"{header} {graph}").SerializeToString())
        return path

    return write


def scaled(factor):
    return f"g (float[4] x) => (float[4] y) <float f = {{{factor}}}> {{ y = Mul(x, f) }}"


def normals(count=5, scale=1.0, size=4):
    dice = np.random.default_rng(0)
    return [{"x": (scale * dice.normal(size=size)).astype("f")} for _ in range(count)]


@pytest.mark.parametrize(("factor", "verdict"), [(3.00001, "equal"), (3.003, "differs")])
def test_errors_are_held_against_the_tolerance_of_the_type(write, factor, verdict):
    result = validate(write("a", scaled(3.0)), write("b", scaled(factor)), normals())
    assert result.verdict == verdict
    assert result.tolerance == 1e-4
    assert result.inputs == 5
    assert 0.5e-6 < result.max_rel_error < 3e-3
    assert result.failure is None


def test_a_given_tolerance_overrules(write):
    a, b = write("a", scaled(3.0)), write("b", scaled(3.003))
    assert validate(a, b, normals(), 1e-2).verdict == "equal"
    assert validate(a, a, normals(), 0.0).verdict == "equal"
    with pytest.raises(UsageError, match="tolerance"):
        validate(a, b, normals(), math.nan)


def test_an_output_that_hardly_moves_does_not_excuse_what_it_lost(write):
    # The candidate ignores the input; relative to the output's size that is an error of 3e-6 only.
    moving = write(
        "a",
        "g (float[4] x) => (float[4] y) <float f = {0.001}, float c = {1000}> { t = Mul(x, f) y = Add(t, c) }",
    )
    frozen = write(
        "b",
        "g (float[4] x) => (float[4] y) <float f = {0.0}, float c = {1000}> { t = Mul(x, f) y = Add(t, c) }",
    )
    result = validate(moving, frozen, normals())
    assert result.max_abs_error < 1e-5 * 1000
    assert result.verdict == "differs"
    assert "less than 1% of its size on 5 of 5" in result.notes[0]


def test_rounding_is_no_difference_and_grows_with_the_length_of_sums(write):
    # A mean of 10,000 numbers may err by a hundred roundings of the output, 1.2e-5 of its size.
    mean = (
        "g (float[1,1,100,100] x) => (float[1,1] y) <float s = {{0.0000001}}, float c = {{{}}}>"
        " {{ t = Mul(x, s) m = ReduceMean<keepdims = 0>(t, axes) y = Add(m, c) }}"
    ).replace("float c", "int64[2] axes = {{2, 3}}, float c")
    inputs = [{"x": feeds["x"].reshape(1, 1, 100, 100)} for feeds in normals(size=10000)]
    a = write("a", mean.format(1.0))
    near, far = write("b", mean.format(1.000006)), write("c", mean.format(1.00003))
    for tolerance in (None, 1e-4):
        found = validate(a, near, inputs, tolerance)
        assert found.verdict == "equal"
        assert found.max_rel_error > found.tolerance
        assert any("within the rounding" in note for note in found.notes)
        assert validate(a, far, inputs, tolerance).verdict == "differs"
    # Sums of one number err by less: the same error is a difference there.
    plain = "g (float[4] x) => (float[4] y) <float s = {{0.0000001}}, float c = {{{}}}> {{ t = Mul(x, s) y = Add(t, c) }}"
    one, other = write("d", plain.format(1.0)), write("e", plain.format(1.000006))
    assert validate(one, other, normals()).verdict == "differs"


@pytest.mark.parametrize(
    ("first", "said"), [(1.0, "2 of the given ones"), (1e4, "the 2 given ones that tell")]
)
def test_weak_generated_inputs_are_told_apart_from_given_ones(write, first, said):
    model = write(
        "a",
        "g (float[4] x) => (float[4] y) <float s = {0.001}, float c = {10}> { t = Mul(x, s) y = Add(t, c) }",
    )
    inputs = [*normals(2, scale=first), *normals(5)]
    reference = module.run_reference(model, inputs, given=2)
    (note,) = module.compare(reference, model).notes
    assert said in note


def test_what_the_original_owes_to_the_order_of_its_sums_is_no_difference(write, monkeypatch):
    a, b = write("a", scaled(1.0)), write("b", scaled(1.002))
    sizes = [float(np.abs(feeds["x"]).max()) for feeds in normals()]
    monkeypatch.setattr(module.Reference, "noise", {"y": [0.001 * size for size in sizes]})
    result = validate(a, b, normals())
    assert result.verdict == "equal"
    assert result.max_rel_error > result.tolerance
    assert "on 5 of 5 inputs the error exceeds the tolerance" in result.notes[0]
    # Not when a tolerance was asked for, not beyond three times the noise, not beyond 100 tolerances.
    assert validate(a, b, normals(), 1e-4).verdict == "differs"
    assert validate(a, write("c", scaled(1.004)), normals()).verdict == "differs"
    monkeypatch.setattr(module.Reference, "noise", {"y": [1e3] * 5})
    assert validate(a, write("d", scaled(1.03)), normals()).verdict == "differs"


def test_the_noise_of_the_original_is_what_optimisation_changes(write):
    deep = (
        "g (float[64,64] x) => (float[64,64] y) { a = MatMul(x, x) b = Add(a, x) y = Relu(b) }"
    )
    inputs = [{"x": feeds["x"].reshape(64, 64)} for feeds in normals(3, size=4096)]
    reference = module.run_reference(write("a", deep), inputs)
    assert list(reference.noise) == ["y"]
    assert len(reference.noise["y"]) == 3
    assert max(reference.noise["y"]) < 1e-3


def test_one_huge_input_does_not_excuse_the_errors_of_the_others(write):
    exact = write("a", "g (float[4] x) => (float[4] y) <float c = {0}> { y = Add(x, c) }")
    off = write("b", "g (float[4] x) => (float[4] y) <float c = {0.01}> { y = Add(x, c) }")
    inputs = [*normals(4), *normals(1, scale=1e6)]
    assert validate(exact, off, inputs).verdict == "differs"
    assert validate(exact, exact, inputs).verdict == "equal"


def test_nan_must_stand_in_the_same_place(write):
    root = write("a", "g (float[4] x) => (float[4] y) { y = Sqrt(x) }")
    same = write("b", "g (float[4] x) => (float[4] y) { t = Sqrt(x) y = Identity(t) }")
    cured = write("c", "g (float[4] x) => (float[4] y) { t = Abs(x) y = Sqrt(t) }")
    result = validate(root, same, normals())
    assert result.verdict == "equal"
    assert "NaN or infinity on" in result.notes[0]
    result = validate(root, cured, normals())
    assert result.verdict == "differs"
    assert result.max_abs_error == math.inf
    assert result.outputs[0].differing == sum(
        int((feeds["x"] < 0).sum()) for feeds in normals()
    )


def test_integers_are_compared_exactly_and_the_worst_output_is_named(write):
    both = "g (float[4] x) => (float[4] y, int64[1] i) {{ y = Identity(x) i = {}(x) }}"
    a, b = write("a", both.format("ArgMax")), write("b", both.format("ArgMin"))
    result = validate(a, b, normals(), tolerance=1.0)
    assert result.verdict == "differs"
    assert result.worst == "i"
    by_name = {row.name: row for row in result.outputs}
    assert by_name["y"].verdict == "equal"
    assert (by_name["i"].differing, by_name["i"].elements) == (5, 5)
    assert by_name["i"].max_rel_error == 1.0


def test_a_frozen_axis_shows_at_the_second_size(write):
    free = write("a", "g (float[N,4] x) => (float[N,M] y) { y = Identity(x) }")
    frozen = write(
        "b", "g (float[N,4] x) => (float[N,M] y) <int64[2] s = {1, -1}> { y = Reshape(x, s) }"
    )
    inputs = find_inputs(free)
    assert {feeds["x"].shape for feeds in inputs.feeds} == {(1, 4), (2, 4)}
    result = validate(free, frozen, inputs.feeds)
    assert result.verdict == "differs"
    assert (
        "output 'y' is float32 [1, 8] on input 2, that of the original float32 [2, 4]"
        in result.failure
    )


def test_who_fails_to_run_decides_what_it_means(write):
    good = write("a", scaled(3.0))
    bad = write("b", "g (float[4] x) => (float[M] y) <int64[1] s = {3}> { y = Reshape(x, s) }")
    result = validate(good, bad, normals())
    assert (result.verdict, result.max_rel_error) == ("differs", math.inf)
    assert "b.onnx' does not run on x [4]" in result.failure
    with pytest.raises(ModelError, match=r"original model cannot be run.*--shape"):
        validate(bad, good, normals())
    with pytest.raises(UsageError, match="no inputs"):
        validate(good, good, [])


@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        (scaled(1.0), "float32"),
        ("g (double[4] x) => (double[4] y) { y = Identity(x) }", "float64"),
        ("g (float[4] x) => (float[4] y) { t = Cast<to=10>(x) y = Cast<to=1>(t) }", "float16"),
        (
            "g (float[4] x) => (float[4] y) <float s = {0.1}> { t = QuantizeLinear(x, s) y = DequantizeLinear(t, s) }",
            "int8",
        ),
        ("g (float[4] x, int8[4] i) => (float[4] y) { y = Identity(x) }", "float32"),
    ],
)
def test_the_tolerance_follows_the_coarsest_type_inside(write, graph, precision):
    assert module.find_precision(write("a", graph)) == precision


IMAGE = TensorSpec("image", "float32", ("N", 3, "H", None))
IDS = TensorSpec("input_ids", "int64", ("N", "T"))
MASK = TensorSpec("attention_mask", "int64", ("N", "T"))


def test_generated_inputs_agree_on_symbols_and_try_two_sizes():
    feeds = generate_inputs([IMAGE, IDS, MASK], seed=1)
    assert len(feeds) == 5
    for each in feeds:
        assert each["image"].shape[0] == each["input_ids"].shape[0]
        assert each["input_ids"].shape == each["attention_mask"].shape
        assert set(np.unique(each["attention_mask"])) <= {0, 1}
        assert (each["attention_mask"][:, 0] == 1).all()
        assert 0 <= each["input_ids"].min() <= each["input_ids"].max() < 100
    assert [each["image"].shape for each in feeds].count((2, 3, 256, 256)) == 2
    assert (feeds[1]["image"] == 1).all()
    assert not any((each["image"] == feeds[0]["image"]).all() for each in feeds[3:4])
    again = generate_inputs([IMAGE, IDS, MASK], seed=1)
    for mine, theirs in zip(feeds, again, strict=True):
        np.testing.assert_array_equal(mine["image"], theirs["image"])


def test_given_shapes_fix_the_symbols_of_other_inputs():
    feeds = generate_inputs([IDS, MASK], {"input_ids": (3, 7)})
    assert {each["attention_mask"].shape for each in feeds} == {(3, 7)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"picture": (1, 3, 8, 8)}, "given for 'picture', but the model's inputs are 'image'"),
        (
            {"image": (1, 4, 8, 8)},
            r"\[1, 4, 8, 8\] does not fit the input 'image' \[N, 3, H, \?\]",
        ),
        ({"image": (1, 3, 8)}, "does not fit"),
    ],
)
def test_shapes_that_contradict_the_model_are_refused(shapes, message):
    with pytest.raises(UsageError, match=message):
        generate_inputs([IMAGE], shapes)


def test_strings_cannot_be_generated():
    with pytest.raises(ModelError, match=r"'s' holds str, which cannot be generated.*--inputs"):
        generate_inputs([TensorSpec("s", "str", (1,))])


def test_sizes_and_integers_are_tried_until_the_model_takes_them(write):
    batch_by_name_only = write(
        "a", "g (float[N,4] x) => (float[M] y) <int64[1] s = {4}> { y = Reshape(x, s) }"
    )
    inputs = find_inputs(batch_by_name_only)
    assert {feeds["x"].shape for feeds in inputs.feeds} == {(1, 4)}
    assert len(inputs.feeds) == 5
    (note,) = inputs.notes
    assert "only seen to take x [1, 4]: " in note
    assert "does not run on x [2, 4]" in note
    table = write(
        "b", "g (int64[T] i) => (float[T] y) <float[3] t = {1, 2, 3}> { y = Gather(t, i) }"
    )
    inputs = find_inputs(table)
    assert max(feeds["i"].max() for feeds in inputs.feeds) == 1
    never = write(
        "c", "g (float[N,4] x) => (float[M] y) <int64[1] s = {5}> { y = Reshape(x, s) }"
    )
    with pytest.raises(ModelError, match=r"no generated input suits the model: .*--shape"):
        find_inputs(never)


def test_sizes_of_images_are_tried_in_turn(write):
    # Rows of 144 = 3 x 48 elements, as readers of text lines have them: 224 x 224 does not divide.
    reader = write(
        "a",
        "g (float[N,3,H,W] x) => (float[N,144,L] y) <int64[3] s = {0, 144, -1}> { y = Reshape(x, s) }",
    )
    inputs = find_inputs(reader)
    shapes = [feeds["x"].shape for feeds in inputs.feeds]
    assert shapes[:2] == [(1, 3, 48, 320), (1, 3, 48, 320)]
    assert set(shapes[2::2]) == {(2, 3, 48, 352)}
    assert inputs.notes == ()
    assert [feeds["x"].shape for feeds in find_inputs(reader, {"x": (3, 3, 48, 7)}).feeds] == [
        (3, 3, 48, 7)
    ] * 5


def test_inputs_are_read_from_a_file_one_or_several(tmp_path):
    path = tmp_path / "in.npz"
    spec = TensorSpec("x", "float32", ("N", 3))
    np.savez(path, x=np.ones((2, 3)))
    (feeds,) = load_inputs(path, [spec])
    assert feeds["x"].dtype == np.float32
    np.savez(path, x=np.arange(24.0).reshape(4, 2, 3))
    several = load_inputs(path, [spec])
    assert len(several) == 4
    np.testing.assert_array_equal(several[3]["x"], np.arange(18.0, 24.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones((2, 3))}, "holds arrays named 'y', the model's inputs are 'x'"),
        ({"x": np.ones(3)}, r"has shape \[3\], but the input has 2 axes \[N, 3\]"),
        ({"x": np.ones((2, 4))}, "does not fit the input 'x'"),
        ({"x": np.ones((2, 3), complex)}, "'x' is complex128, but the input is float32"),
        ({"x": np.ones((0, 2, 3))}, "different numbers of inputs"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, arrays, message):
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        load_inputs(path, [TensorSpec("x", "float32", ("N", 3))])


@pytest.mark.parametrize("content", [None, b"no zip", b""])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    path = tmp_path / "in.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as inputs"):
        load_inputs(path, [TensorSpec("x", "float32", (3,))])


def test_both_models_run_as_they_are_written(write, monkeypatch):
    levels = []

    class Spy(module.Session):
        def __init__(self, model, *, threads=None, optimization="all"):
            levels.append(optimization)
            super().__init__(model, threads=threads, optimization=optimization)

    monkeypatch.setattr(module, "Session", Spy)
    assert (
        validate(write("a", scaled(1.0)), write("b", scaled(1.0)), normals()).verdict == "equal"
    )
    assert levels == ["none", "none"]
