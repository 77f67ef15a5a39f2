"""The user's side of a search: a model, data, and how the one is trained on the other."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from deploykit.errors import DeploykitError, ModelError, UsageError
from deploykit.finder.schedules import cosine

__all__ = [
    "Data",
    "Inputs",
    "Split",
    "Task",
    "asking",
    "error_text",
    "forward_part",
    "load_object",
    "load_task",
]

Inputs: TypeAlias = Tensor | tuple[Tensor, ...]
Split: TypeAlias = Dataset[Any] | tuple[Inputs, Tensor]

MOST_NAMED = 12
FORWARD = "the model's forward pass"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Examples to learn from and to judge by.

    Each split is a pair of tensors, `(inputs, targets)`, whose first axis are the examples, or a map-style data set whose
    items are such pairs of one example. Inputs of a model with several are a tuple.

    Attributes:
        train: what the weights are fitted to.
        test: what is told at the end of a round, and decides nothing.
        validation: what is watched while training. None: a tenth of `train`, always the same one, is held out.
    """

    train: Split
    test: Split
    validation: Split | None = None


class Task:
    """What a network is to learn. Override what differs; `model` and `data` have to be there.

    Attributes:
        name: what tables and tickets call it.
        epochs: length of one training run.
        batch: examples in a step, over all processes.
        workers: processes that load examples of a data set; pairs of tensors need none.
    """

    name: str = ""
    epochs: int = 20
    batch: int = 128
    workers: int = 0
    _remembered: tuple[Tensor, ...] | None = None

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - object's signature
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def model(self) -> nn.Module:
        """A new network; its weights come from torch's generator, which is seeded before."""
        raise NotImplementedError

    def data(self) -> Data:
        """The examples; the same every time."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:  # noqa: ANN401 - whatever the model returns
        """What training makes small: a scalar, the mean over the batch. Default: cross entropy."""
        return functional.cross_entropy(outputs, targets)

    def metric(self, outputs: Any, targets: Tensor) -> Tensor:  # noqa: ANN401 - as above
        """What is told of a network: a scalar, the mean over the batch, higher is better. Default: accuracy."""
        right: Tensor = outputs.argmax(dim=1) == targets
        return right.float().mean()

    def example_inputs(self) -> tuple[Tensor, ...]:
        """What the model is traced with, a batch of two or more. Default: the first two training examples."""
        if self._remembered is None:
            self.remember(self.data())
        return self._remembered or ()

    def remember(self, data: Data) -> None:
        """Keep what `example_inputs` returns by default, and nothing else of the data."""
        from deploykit.finder.examples import Examples

        examples = Examples(data.train, "train")
        self._remembered = examples.take(torch.arange(min(2, len(examples))))[0]

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """How weights are updated. Default: SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4."""
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)

    def schedule(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
        """The learning rate, stepped after every step. Default: a cosine; see `deploykit.finder.schedules`."""
        return cosine(optimizer, epochs, steps_per_epoch)

    def prunable(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the weights that may be pruned, as the state dict has them.

        Default: those of convolutions and linear layers, in the order in which they run, without the last to run: it is
        the head, whose outputs are the answer.
        """
        names: dict[nn.Module, str] = {
            module: f"{name}.weight" if name else "weight"
            for name, module in model.named_modules()
            # A weight that is computed from others (weight_norm) is no parameter, and cannot be set.
            if isinstance(module, LAYERS) and "weight" in module._parameters  # noqa: SLF001
        }
        order: dict[str, None] = {}

        def note(module: nn.Module, inputs: object) -> None:
            del inputs
            order.pop(names[module], None)  # what runs twice counts where it runs last
            order[names[module]] = None

        hooks = [module.register_forward_pre_hook(note) for module in names]
        was_training = model.training
        try:
            # Evaluation: nothing that is counted may change.
            model.eval()
            device = next((each.device for each in model.parameters()), None)
            examples = self.example_inputs()
            with torch.no_grad(), asking(self, forward_part(examples)):
                model(*(each.to(device) for each in examples))
        finally:
            model.train(was_training)
            for hook in hooks:
                hook.remove()
        return tuple(order)[:-1]


@contextlib.contextmanager
def asking(task: Task, part: str) -> Iterator[None]:
    """Whatever a part of a task raises is told as the task's own error, with the place in the user's file.

    Raises:
        UsageError: it raised something.
        ModelError: the memory of the device ran out.
    """
    try:
        yield
    except (DeploykitError, MemoryError, OSError):
        raise
    except torch.OutOfMemoryError as error:
        msg = f"the task '{task.name}' needs more memory than the GPU has: {error}. Take a smaller batch, or --device cpu."
        raise ModelError(msg) from error
    except NotImplementedError as error:
        if str(error):
            raise UsageError(_failure(task, part, error)) from error
        msg = f"the task '{task.name}' lacks {part}, which every task has to bring. Define it in {type(task).__name__}."
        raise UsageError(msg) from error
    except Exception as error:
        raise UsageError(_failure(task, part, error)) from error


def forward_part(inputs: Inputs) -> str:
    """What to call a model's forward pass where it may fail: mostly because the data are not of the shape it is made for."""
    several = (inputs,) if isinstance(inputs, Tensor) else inputs
    shapes = " and ".join(str(list(each.shape)) for each in several)
    return f"{FORWARD} on inputs of shape {shapes}"


def _failure(task: Task, part: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    torch_folder = str(Path(torch.__file__).parent)
    own = [
        each
        for each in frames
        if not each.filename.startswith((here, torch_folder))
        or "/finder/tasks/" in each.filename
    ]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    advice = "Correct the task."
    if part.startswith(FORWARD):
        advice = "Correct the model, or the data that it is given."
    if "deterministic" in str(error):
        advice = "Take another operation, or give --no-deterministic: then a search that was killed comes to another ticket."
    return f"{part} of the task '{task.name}' failed: {error_text(error)}{place}. {advice}"


def error_text(error: Exception) -> str:
    """The kind of an error and what it says; a place that is told besides, or a full stop, would be told twice."""
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).rstrip(" .")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def load_object(reference: str) -> object:
    """The object that `package.module:object` names; modules are looked for in the current folder first.

    Raises:
        UsageError: it has another form, there is no such module or object, or the module fails to load.
    """
    advice = "A task is given as package.module:object, e.g. deploykit.finder.tasks:digits."
    module_name, colon, path = reference.partition(":")
    if not (colon and module_name and path):
        msg = f"'{reference}' names no object in a module. {advice}"
        raise UsageError(msg)
    if module_name.endswith(".py") or os.sep in module_name:
        dotted = module_name.removesuffix(".py").replace(os.sep, ".").strip(".")
        msg = f"'{module_name}' is a file, and a module is wanted: '{dotted}:{path}', from the folder that it starts in."
        raise UsageError(msg)
    # What a script that is installed is started with does not hold the current folder.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            msg = f"there is no module '{missing}', in '{here}' or installed. {advice}"
        else:
            msg = f"the module '{module_name}' needs '{missing}', which is not installed. Install it first."
        raise UsageError(msg) from error
    except DeploykitError:
        raise
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        place = f"{Path(lines[-1].filename).name}, line {lines[-1].lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{Path(error.filename).name}, line {error.lineno}"
        msg = f"the module '{module_name}' failed to load: {error_text(error)} ({place}). Correct it."
        raise UsageError(msg) from error
    for part in path.split("."):
        if not hasattr(found, part):
            there = _sources_in(sys.modules[module_name])
            listed = (
                f"It has: {', '.join(there[:MOST_NAMED])}"
                if there
                else "It has no task and no model"
            )
            msg = f"the module '{module_name}' has no '{path}'. {listed}{', ...' if there[MOST_NAMED:] else ''}."
            raise UsageError(msg)
        found = getattr(found, part)
    return found


def _sources_in(module: ModuleType) -> list[str]:
    """Names of what a module has that can be meant: tasks, models, and what is defined in it and may return one."""
    found = []
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__
        is_task = isinstance(value, type) and issubclass(value, Task) and value is not Task
        is_made = isinstance(value, Task | nn.Module)
        if not name.startswith("_") and (is_made or is_task or (is_own and callable(value))):
            found.append(name)
    return found


def load_task(reference: str) -> Task:
    """The task that `package.module:object` names: a Task, a class of tasks, or a function that returns one.

    Raises:
        UsageError: there is none, or what is there is something else.
    """
    found = load_object(reference)
    if isinstance(found, Task):
        return found
    if callable(found) and not isinstance(found, nn.Module):
        try:
            made = found()
        except DeploykitError:
            raise
        except Exception as error:
            msg = f"'{reference}' failed when it was called for a task: {error_text(error)}. Correct it."
            raise UsageError(msg) from error
        if isinstance(made, Task):
            return made
        kind = f"returns a {type(made).__name__}"
        is_model = isinstance(made, nn.Module)
    else:
        kind = f"is a {type(found).__name__}"
        is_model = isinstance(found, nn.Module)
    if is_model:
        msg = (
            f"'{reference}' {kind}, which is a model without a task. A search needs data and a loss, too: write a subclass "
            "of deploykit.finder.task.Task with model() and data()."
        )
    else:
        msg = f"'{reference}' {kind}, and no Task. Give a deploykit.finder.task.Task, its class, or a function that returns one."
    raise UsageError(msg)
