"""Tasks: how they are named, what is wrong with them, and in whose words that is told."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402
from torch.utils.data import Dataset, TensorDataset  # noqa: E402

from deploykit.errors import UsageError  # noqa: E402
from deploykit.finder.examples import Examples, Splits, split_batches  # noqa: E402
from deploykit.finder.task import Data, Task, load_task  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Net, Pictures, clouds  # noqa: E402

MODULES = {
    "good": """
from tests.deploykit.finder.toy import Clouds
task = Clouds()
def make(): return Clouds()
def factory():
    import torch
    return torch.nn.Linear(2, 2)
model = factory()
def raises(): raise ValueError("no luck")
def other(): return 3
number = 3
""",
    "empty": "import torch, sys\nfrom torch import nn\nfrom deploykit.finder.task import Task\n",
    "broken": "import torch\nx = 1 / 0\n",
    "unwritten": "def task(:\n",
    "poor": "import a_package_that_is_not_there\n",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"toy_{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in MODULES:
        sys.modules.pop(f"toy_{name}", None)


@pytest.mark.parametrize("reference", ["toy_good:task", "toy_good:Clouds", "toy_good:make"])
def test_a_task_its_class_or_a_function(modules, reference):
    assert isinstance(load_task(reference), Task)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("toy_good", "'toy_good' names no object in a module"),
        ("toy_good:", "names no object in a module"),
        ("toy_good.py:task", "is a file, and a module is wanted: 'toy_good:task'"),
        ("nowhere.tasks:task", "there is no module 'nowhere'"),
        ("toy_good:tusk", r"has no 'tusk'. It has: Clouds, task, make, .*, other\.$"),
        ("toy_empty:task", r"has no 'task'. It has no task and no model\.$"),
        ("toy_good:factory", "returns a Linear, which is a model without a task"),
        ("toy_good:model", "is a Linear, which is a model without a task"),
        ("toy_good:number", "is a int, and no Task"),
        ("toy_good:other", "returns a int, and no Task"),
        ("toy_good:raises", "failed when it was called for a task: ValueError: no luck"),
        ("toy_broken:task", r"failed to load: ZeroDivisionError: .* \(toy_broken.py, line 2\)"),
        (
            "toy_unwritten:task",
            r"failed to load: SyntaxError: [^(]* \(toy_unwritten.py, line 1\)\. Correct it\.$",
        ),
        ("toy_poor:task", "needs 'a_package_that_is_not_there', which is not installed"),
    ],
)
def test_what_is_no_task_is_told(modules, reference, message):
    with pytest.raises(UsageError, match=message):
        load_task(reference)


def bad(**parts):
    return type("Bad", (Clouds,), {**parts, "name": "bad"})()


def splits(**given):
    return lambda _: Data(**{"train": clouds(20, 1), "test": clouds(8, 2), **given})


POINTS, KINDS = clouds(20, 1)
TASKS = {
    "no model": (
        type("Empty", (Task,), {"data": splits()})(),
        "the task 'Empty' lacks model",
    ),
    "no data": (
        type("Empty", (Task,), {"model": Clouds.model})(),
        "the task 'Empty' lacks data",
    ),
    "model raises": (
        bad(model=lambda _: 1 / 0),
        r"model\(\) of the task 'bad' failed: ZeroDivisionError.*test_task.py, line",
    ),
    "model is none": (bad(model=lambda _: None), "returns a NoneType, and no torch.nn.Module"),
    "data is a pair": (
        bad(data=lambda _: (POINTS, KINDS)),
        r"returns a tuple. Return a deploykit.finder.task.Data",
    ),
    "split of arrays": (
        bad(data=splits(train=(POINTS.numpy(), KINDS))),
        "'train' holds a ndarray",
    ),
    "split of three": (bad(data=splits(test=(POINTS, KINDS, KINDS))), "'test' has 3 parts"),
    "split of numbers": (bad(data=splits(test=3)), "'test' is a int"),
    "lengths": (
        bad(data=splits(train=(POINTS, KINDS[:7]))),
        r"differ in number: shapes \[20, 16\], \[7\]",
    ),
    "empty": (bad(data=splits(test=(POINTS[:0], KINDS[:0]))), "'test' holds no examples"),
    "epochs": (bad(epochs=0), "'epochs' of the task 'bad' is 0"),
    "batch": (bad(batch=2.5), "'batch' of the task 'bad' is 2.5"),
    "input size": (
        bad(data=splits(train=(POINTS[:, :3], KINDS))),
        r"forward pass on inputs of shape \[2, 3\] of .* shapes cannot be multiplied.* Correct the model, or the data",
    ),
    "nothing to prune": (
        bad(model=lambda _: nn.Linear(16, 4)),
        "no weight that may be pruned, besides the head",
    ),
    "prunable": (
        bad(prunable=lambda *_: ("9.weight",)),
        r"names '9.weight', which is no weight of the model.* There are: 0.weight, 2.weight, 4.weight\.",
    ),
    "a bias": (
        bad(prunable=lambda *_: ("0.bias",)),
        "names '0.bias', which is no weight of the model",
    ),
    "optimizer": (
        bad(optimizer=lambda *_: None),
        r"optimizer\(\) of the task 'bad' returns a NoneType",
    ),
    "schedule": (bad(schedule=lambda *_: 3), r"schedule\(\) of the task 'bad' returns a int"),
    "loss raises": (
        bad(loss=lambda *_: {}[1]),
        r"loss\(\) of the task 'bad' failed: KeyError",
    ),
    "loss of many": (
        bad(loss=lambda _, outputs, __: outputs),
        r"loss\(\) of the task 'bad' returns a tensor of shape \[64, 4\]",
    ),
    "loss without weights": (
        bad(loss=lambda *_: torch.ones(())),
        "does not depend on the weights",
    ),
    "loss is nan": (
        bad(loss=lambda _, outputs, __: outputs.sum() * float("nan")),
        "is nan before any training",
    ),
    "metric": (bad(metric=lambda *_: 0.5), r"metric\(\) of the task 'bad' returns 'float'"),
    "class": (
        bad(data=splits(train=(POINTS, KINDS + 4))),
        r"loss\(\) of the task 'bad' failed: IndexError: Target \d is out of bounds\. Correct",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_bad_task_is_told_before_any_work(name):
    task, message = TASKS[name]
    with pytest.raises(UsageError, match=message):
        Trainer(task).probe()


def test_what_may_be_pruned_is_found_in_the_order_in_which_it_runs():
    class Turned(Net):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(3, 3)
            # Made first, run last.
            self.first, self.head = self.first, self.head

    class Own(Pictures):
        def model(self):
            return Turned()

    task = Own()
    model = task.model()
    assert task.prunable(model) == ("first.weight", "one.weight", "two.weight")
    assert model.training
    assert int(model.norm.num_batches_tracked) == 0


def test_a_weight_that_is_computed_is_not_pruned():
    model = Clouds().model()
    nn.utils.parametrizations.weight_norm(model[2])
    assert Clouds().prunable(model) == ("0.weight",)


class Items(Dataset):
    """A map-style data set whose items are drawn anew each time."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return (POINTS[index % 20] + 0.1 * torch.rand(16), POINTS[index % 20, :2]), KINDS[
            index % 20
        ]


def test_examples_of_a_data_set_with_several_inputs_are_drawn_as_the_seed_says():
    examples = Examples(Items(30), "train")
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(list(examples.batches(split_batches(torch.arange(30), 8))))
        torch.rand(3)
    assert [len(targets) for _, targets in found[0]] == [8, 8, 8, 6]
    for (inputs, targets), (again, _) in zip(*found, strict=True):
        assert inputs[0].shape == (len(targets), 16)
        assert inputs[1].shape == (len(targets), 2)
        assert torch.equal(inputs[0], again[0])
    assert examples.fingerprint() == Examples(Items(30), "train").fingerprint()
    assert examples.fingerprint() != Examples(Items(31), "train").fingerprint()


def test_a_tensor_data_set_is_a_pair_and_all_of_it_counts():
    pair, dataset = Examples((POINTS, KINDS), "a"), Examples(TensorDataset(POINTS, KINDS), "b")
    assert pair.fingerprint() == dataset.fingerprint()
    changed = KINDS.clone()
    changed[-1] += 1
    assert Examples((POINTS, changed), "a").fingerprint() != pair.fingerprint()


def test_without_a_validation_split_a_tenth_is_held_out_always_the_same():
    data = Data(train=clouds(50, 1), test=clouds(8, 2))
    one, two = Splits(data), Splits(data)
    assert (len(one.train), len(one.validation)) == (45, 5)
    assert one.fingerprint() == two.fingerprint()
    whole = {tuple(row.tolist()) for row in data.train[0]}
    parts = [
        {tuple(row.tolist()) for row in each.take(torch.arange(len(each)))[0][0]}
        for each in (one.train, one.validation)
    ]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
