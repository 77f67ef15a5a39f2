"""Training under masks: zeros stay zeros, a run can be taken up anywhere, and nothing before it counts."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from deploykit.errors import ModelError, UsageError  # noqa: E402
from deploykit.finder.engine import deterministic  # noqa: E402
from deploykit.finder.masking import hold_zero  # noqa: E402
from deploykit.finder.schedules import cosine, steps  # noqa: E402
from deploykit.finder.seeds import seed_all  # noqa: E402
from deploykit.finder.training import Checkpoint, Trainer  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Pictures, clouds  # noqa: E402


def scattered(trainer, density=0.4, seed=0):
    dice = np.random.default_rng(seed)
    initial = trainer.initial()
    return {name: dice.random(initial[name].shape) < density for name in trainer.names}


def same(one, other):
    return list(one) == list(other) and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def optimizers():
    return {
        "sgd": lambda each: torch.optim.SGD(each, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "nesterov": lambda each: torch.optim.SGD(each, lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda each: torch.optim.Adam(each, lr=0.01, amsgrad=True),
        "adamw": lambda each: torch.optim.AdamW(each, lr=0.01, weight_decay=0.1),
        "rmsprop": lambda each: torch.optim.RMSprop(each, lr=0.01, momentum=0.9),
    }


@pytest.mark.parametrize("name", optimizers())
def test_what_is_dropped_stays_zero_and_so_does_all_that_is_remembered_of_it(name):
    class Kept(Pictures):
        def optimizer(self, parameters):
            self.made = optimizers()[name](parameters)
            return self.made

    task = Kept()
    trainer = Trainer(task, epochs=2)
    masks = scattered(trainer)
    trained = trainer.train(trainer.initial(), masks)
    state = task.made.state
    shapes = {tuple(mask.shape): mask for mask in masks.values()}
    assert len(shapes) >= 2
    remembered = 0
    for each, mask in masks.items():
        assert (trained.weights[each][~mask] == 0).all()
        # Negative zeros would be other bytes in the file.
        assert not np.signbit(trained.weights[each][~mask]).any()
        assert np.count_nonzero(trained.weights[each]) == np.count_nonzero(mask)
    parameters = [each for group in task.made.param_groups for each in group["params"]]
    model = trainer.fresh_model()
    for (each, _), parameter in zip(model.named_parameters(), parameters, strict=True):
        for value in state[parameter].values():
            if each in masks and getattr(value, "shape", ()) == parameter.shape:
                found = value.detach().numpy()
                assert (found[~masks[each]] == 0).all()
                assert found[masks[each]].any()
                remembered += 1
    assert remembered >= len(masks)


def test_momentum_from_before_the_mask_is_forgotten():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    dropped = torch.tensor([[True, False], [False, False]])
    hold_zero({weight: dropped}, optimizer)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    hold_zero({weight: dropped}, optimizer)
    buffer = optimizer.state[weight]["momentum_buffer"]
    assert weight[0, 0] == 0
    assert buffer[0, 0] == 0
    assert (weight[~dropped] < 1).all()
    assert (buffer[~dropped] > 0).all()


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("kind", [Clouds, Pictures])
def test_a_run_that_was_stopped_comes_to_the_same_bits(kind, stop):
    trainer = Trainer(kind(), seed=3)
    start, masks, held = trainer.initial(), scattered(trainer), []

    def keep(live):
        if live.epoch == stop:
            held.append(live.checkpoint())

    with deterministic(True):
        whole = trainer.train(start, masks, number=2, after_epoch=keep)
        # What was drawn in between must not matter, nor the object that trains.
        torch.rand(7)
        seed_all(99)
        again = Trainer(kind(), seed=3).train(start, masks, number=2, resume=held[0])
    assert same(whole.weights, again.weights)
    assert (whole.epochs, whole.test) == (again.epochs, again.test)
    assert len(again.epochs) == trainer.epochs


def test_a_checkpoint_survives_json_and_what_it_cannot_hold_is_none():
    class Odd(Clouds):
        def schedule(self, optimizer, epochs, steps_per_epoch):
            made = super().schedule(optimizer, epochs, steps_per_epoch)
            made.more = object()
            return made

    held = []
    for task in (Clouds(), Odd()):
        Trainer(task, epochs=2).train(
            Trainer(task).initial(),
            {},
            after_epoch=lambda live: held.append(live.checkpoint()),
        )
    assert isinstance(held[0], Checkpoint)
    assert any("momentum" in name for name in held[0].arrays)
    assert held[2] is None


def test_rounds_see_the_examples_in_other_orders_and_seeds_differ():
    trainer = Trainer(Clouds(), epochs=1)
    start = trainer.initial()
    one, two = (trainer.train(start, {}, number=number) for number in (0, 1))
    assert not same(one.weights, two.weights)
    assert same(one.weights, trainer.train(start, {}, number=0).weights)
    assert not same(start, Trainer(Clouds(), seed=1).initial())
    assert same(trainer.initial(seed=1), Trainer(Clouds(), seed=1).initial())


def test_masks_that_keep_all_change_nothing():
    trainer = Trainer(Pictures(), epochs=2)
    start = trainer.initial()
    ones = {name: np.ones(start[name].shape, np.bool_) for name in trainer.names}
    assert same(trainer.train(start, {}).weights, trainer.train(start, ones).weights)


def test_a_rewound_run_goes_on_with_the_learning_rate():
    rates = []

    class Watched(Clouds):
        def schedule(self, optimizer, epochs, steps_per_epoch):
            made = super().schedule(optimizer, epochs, steps_per_epoch)
            step = made.step
            self.seen = []

            def note():
                self.seen.append(optimizer.param_groups[0]["lr"])
                step()

            made.step = note
            return made

    for first in (0, 3):
        task = Watched()
        trainer = Trainer(task)
        trainer.train(trainer.initial(), {}, first_epoch=first)
        rates.append(task.seen)
    # The steps that are skipped are steps of the schedule, too.
    assert rates[0] == rates[1]
    assert rates[0][0] == 0.1
    assert rates[0][-1] < 0.001


def test_learning_rates():
    def rates(make, **options):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        schedule = make(optimizer, 8, 10, **options)
        found = []
        for _ in range(80):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    found = rates(cosine)
    assert found[0] == 1.0
    assert found[40] == pytest.approx(0.5)
    assert 0 < found[-1] < 0.001
    warm = rates(cosine, warmup_epochs=1)
    assert warm[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert max(warm) == warm[10] == 1.0
    found = rates(steps)
    assert [found[index] for index in (0, 39, 40, 59, 60, 79)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_a_loss_that_is_not_finite_ends_the_training_at_once():
    class Diverging(Clouds):
        def optimizer(self, parameters):
            return torch.optim.SGD(parameters, lr=1e20)

    trainer = Trainer(Diverging())
    with pytest.raises(
        UsageError, match=r"diverged: the loss is (nan|inf) after step \d+ of epoch 1, round 4"
    ):
        trainer.train(trainer.initial(), {}, number=4)


def test_an_operation_that_is_not_deterministic_is_told_with_the_way_out():
    class Put(Clouds):
        def loss(self, outputs, targets):
            return (
                super().loss(outputs, targets)
                + 0 * torch.zeros(3).put_(torch.tensor([1]), torch.ones(1)).sum()
            )

    trainer = Trainer(Put(), epochs=1)
    with deterministic(True), pytest.raises(UsageError, match="give --no-deterministic"):
        trainer.train(trainer.initial(), {})
    trainer.train(trainer.initial(), {})


def test_a_metric_that_is_no_number_is_told():
    class Empty(Clouds):
        def metric(self, outputs, targets):
            return torch.tensor([]).mean()

    trainer = Trainer(Empty(), epochs=1)
    with pytest.raises(UsageError, match="comes to nan on the split 'validation'"):
        trainer.train(trainer.initial(), {})


def test_weights_and_masks_of_another_model_are_refused():
    trainer = Trainer(Clouds())
    start = trainer.initial()
    with pytest.raises(ModelError, match=r"'0.weight' is not in the weights"):
        trainer.train({name: start[name] for name in start if name != "0.weight"}, {})
    with pytest.raises(ModelError, match="'more' is not in the model"):
        trainer.train({**start, "more": start["0.weight"]}, {})
    with pytest.raises(ModelError, match=r"'0.bias' has shape \[3\], and \[24\] in the model"):
        trainer.train({**start, "0.bias": np.ones(3, np.float32)}, {})
    with pytest.raises(ModelError, match="a mask for 'nothing', which the model does not have"):
        trainer.train(start, {"nothing": np.ones(2, np.bool_)})
    with pytest.raises(
        ModelError, match=r"mask of '0.weight' has shape \[2\], its weight \[24, 16\]"
    ):
        trainer.train(start, {"0.weight": np.ones(2, np.bool_)})


def test_the_metric_is_the_mean_over_all_examples_however_they_are_divided():
    class Odd(Clouds):
        def data(self):
            data = super().data()
            # 1001 examples: a last batch of one joins the one before.
            return type(data)(train=data.train, validation=clouds(1001, 5), test=data.test)

    trainer = Trainer(Odd())
    model = trainer.model_with(trainer.initial())
    inputs, targets = trainer.splits.validation.take(torch.arange(1001))
    with torch.no_grad():
        expected = float((model(*inputs).argmax(1) == targets).double().mean())
    assert trainer.evaluate(model, trainer.splits.validation) == pytest.approx(
        expected, abs=1e-7
    )
    assert model.training
