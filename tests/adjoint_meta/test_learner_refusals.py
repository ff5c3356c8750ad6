"""What a learner refuses, and what it says: modules, data and calls that do not fit, values that are not finite."""

from __future__ import annotations

import pytest
import torch
from learner_methods import METHODS, every_method, kind, mse
from problems import mlp, regression
from torch import nn

from adjoint_meta import FOMAML, MAML, AdjointMAML, Batch, ImplicitMAML, MetaLearner, Reptile, SolverError, TaskBatch


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "mlp"}, TypeError, r"model must be a torch\.nn\.Module, got str"),
        ({"loss": "mse"}, TypeError, r"loss must be callable as loss\(prediction, target\), got str"),
        ({"method": "maml"}, TypeError, "method must be one such as AdjointMAML"),
        ({"method": MAML}, TypeError, "method must be one such as AdjointMAML"),
        ({"backend": "eagr"}, ValueError, "unknown backend 'eagr'; did you mean 'eager'"),
        ({"mode": "reverse_over_revers"}, ValueError, "unknown mode .* did you mean 'reverse_over_reverse'"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
        ({"adapt": "2.wieght"}, ValueError, r"adapt pattern '2\.wieght' matches no trainable parameter; did you mean"),
        ({"model": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))}, ValueError, "track_running_stats=False"),
        ({"model": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))}, ValueError, "set p=0 or call"),
        ({"model": nn.Tanh()}, ValueError, "no parameters that require grad"),
    ],
)
def test_learners_that_cannot_be(change, error, message, generator):
    given = {"model": mlp(generator), "loss": mse, "method": MAML(), **change}
    with pytest.raises(error, match=message):
        MetaLearner(given.pop("model"), given.pop("loss"), given.pop("method"), **given)


def test_a_module_that_is_switched_to_training_later_is_refused_then(generator):
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).eval()
    learner, tasks = MetaLearner(model, mse, MAML()), regression(generator)
    learner.meta_gradient(tasks)
    learner.train()
    for call in (learner, learner.meta_gradient, learner.query_losses, lambda t: learner.adapt(t.support)):
        with pytest.raises(ValueError, match="Dropout '1' would draw a new dropout mask"):
            call(tasks)


def test_predictions_with_dropout_are_refused_too(generator):
    learner = MetaLearner(nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5)).eval(), mse, MAML())
    learner.train()
    with pytest.raises(ValueError, match="Dropout '1' would draw a new dropout mask"):
        learner.predict(learner.initial(3), regression(generator).query.x)


def broken(tasks: TaskBatch, which: str, name: str, change) -> TaskBatch:
    """The tasks with one tensor changed."""
    parts = {"support": tasks.support, "query": tasks.query}
    tensors = {"x": parts[which].x, "y": parts[which].y}
    parts[which] = Batch(**{**tensors, name: change(tensors[name])})
    return TaskBatch(**parts)


@pytest.mark.parametrize("which", ["support", "query"])
@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("x", lambda x: x.float(), TypeError, r"{}\.x is torch\.float32 but the model is torch\.float64"),
        ("y", lambda y: y.float(), TypeError, r"{}\.y is torch\.float32 but the model is torch\.float64"),
        ("y", lambda y: y.long(), TypeError, r"{}\.y is torch\.int64, but mse_loss is a regression loss"),
        ("y", lambda y: y[..., 0], ValueError, r"predicts \[1, 5, 1\] for {}\.x, but {}\.y is \[1, 5\]"),
        ("y", lambda y: y.expand(-1, -1, 2), ValueError, r"but {}\.y is \[1, 5, 2\]; mse_loss would broadcast"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "meta_gradient", "query_losses"])
def test_data_that_do_not_fit(which, name, change, error, message, call, generator):
    learner = MetaLearner(mlp(generator), mse, MAML())
    with pytest.raises(error, match=message.format(which, which)):
        getattr(learner, call)(broken(regression(generator), which, name, change))


def test_data_on_another_device(generator):
    learner = MetaLearner(mlp(generator), mse, MAML())
    with pytest.raises(ValueError, match=r"support\.x is on meta but the model is on cpu; use tasks\.to\(device\)"):
        learner(regression(generator).to("meta"))


def test_every_new_shape_is_checked(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, MAML()), regression(generator)
    learner(tasks)
    with pytest.raises(ValueError, match="would broadcast"):
        learner(broken(tasks, "query", "y", lambda y: y[..., 0]))
    with pytest.raises(ValueError, match="would broadcast"):
        learner(broken(tasks, "query", "y", lambda y: y[..., 0]))


def test_masks(generator):
    tasks, mask = regression(generator), torch.ones(3, 5, dtype=bool)
    learner = MetaLearner(mlp(generator), mse, MAML())
    for which in ("support", "query"):
        parts = {"support": tasks.support, "query": tasks.query}
        parts[which] = Batch(parts[which].x, parts[which].y, mask)
        with pytest.raises(ValueError, match=f"{which} has a mask, which losses cannot honour"):
            learner(TaskBatch(**parts))


def test_what_is_no_task_batch(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, MAML()), regression(generator)
    for call in (learner, learner.meta_gradient, learner.query_losses):
        with pytest.raises(TypeError, match="TaskBatch"):
            call(tasks.support)
    with pytest.raises(TypeError, match="Batch"):
        learner.adapt(tasks)


def test_a_loss_that_is_no_scalar(generator):
    learner = MetaLearner(mlp(generator), nn.MSELoss(reduction="none"), MAML())
    with pytest.raises(ValueError, match="loss must return a scalar for each task"):
        learner(regression(generator))


@every_method
def test_a_meta_gradient_that_would_be_zero_in_silence(method, generator):
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="does not depend on the adapted parameters"):
        MetaLearner(Detached(2, 1), mse, method)(regression(generator))


CALLS = {
    "forward": lambda learner, tasks: learner(tasks),
    "meta_gradient": lambda learner, tasks: learner.meta_gradient(tasks),
    "query_losses": lambda learner, tasks: learner.query_losses(tasks),
    "adapt": lambda learner, tasks: learner.adapt(tasks.support),
}


def with_value(value: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[1, 2, 0] = value
        return changed

    return change


@pytest.mark.parametrize("which", ["support", "query"])
@pytest.mark.parametrize(("name", "value"), [("x", float("nan")), ("y", float("nan")), ("y", float("inf"))])
@pytest.mark.parametrize("call", ["forward", "meta_gradient"])
@pytest.mark.parametrize("method", METHODS, ids=kind)
def test_values_that_are_not_finite_are_blamed_on_the_data(method, call, which, name, value, generator):
    learner = MetaLearner(mlp(generator), mse, method)
    tasks = broken(regression(generator), which, name, with_value(value))
    with pytest.raises(ValueError, match=rf"{which}\.{name} holds 1 values? that (is|are) NaN or infinite"):
        CALLS[call](learner, tasks)


@pytest.mark.parametrize(
    ("call", "which"), [("adapt", "support"), ("query_losses", "support"), ("query_losses", "query")]
)
def test_evaluation_blames_the_data_too(call, which, generator):
    learner = MetaLearner(mlp(generator), mse, MAML(steps=3))
    with pytest.raises(ValueError, match=rf"{which}\.y holds 1 values?"):
        CALLS[call](learner, broken(regression(generator), which, "y", with_value(float("nan"))))


def test_a_task_that_cannot_be_adapted_to_is_not_left_out_in_silence(generator):
    # A linear model's Hessian does not depend on y: but for the gradient nothing would notice.
    learner = MetaLearner(nn.Linear(2, 1), mse, ImplicitMAML(steps=3, inner_tol=1e-3))
    with pytest.raises(ValueError, match=r"support\.y holds 1 values?"):
        learner.meta_gradient(broken(regression(generator), "support", "y", with_value(float("nan"))))


def test_the_advice_for_bad_data_can_be_followed(generator):
    # Masks are refused in training, so they are no advice.
    learner = MetaLearner(mlp(generator), mse, MAML(steps=3))
    with pytest.raises(ValueError, match="NaN or infinite") as caught:
        learner(broken(regression(generator), "support", "y", with_value(float("nan"))))
    assert "mask" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "method",
    [
        MAML(steps=60, inner_lr=1e3),
        FOMAML(steps=60, inner_lr=1e3),
        Reptile(steps=60, inner_lr=1e3),
        ImplicitMAML(steps=60, inner_lr=1e3),
        AdjointMAML(horizon=6e4, steps=60, solver="heun"),
    ],
    ids=kind,
)
def test_a_diverging_solve_says_what_to_change(method, call, generator):
    learner = MetaLearner(nn.Linear(2, 1), mse, method)
    tasks = regression(generator)
    scaled = TaskBatch(Batch(1e3 * tasks.support.x, tasks.support.y), tasks.query)
    with pytest.raises(SolverError, match=r"inner solve failed in 3 of 3 rows.*take more steps, a shorter horizon"):
        CALLS[call](learner, scaled)


def test_predict_refuses_what_does_not_fit(generator):
    learner, x = MetaLearner(mlp(generator), mse, MAML()), torch.randn(3, 5, 2, generator=generator)
    phi = learner.initial(3)
    with pytest.raises(ValueError, match="phi must have 17 columns, got 16"):
        learner.predict(phi[:, :-1], x)
    with pytest.raises(ValueError, match="x must hold one row of points a task, 3, got 2"):
        learner.predict(phi, x[:2])
    with pytest.raises(ValueError, match=r"phi must have shape \[rows, P\]"):
        learner.predict(phi[0], x)


def test_predict_says_what_to_do_about_a_wrong_dtype(generator):
    learner = MetaLearner(mlp(generator), mse, MAML())
    with pytest.raises(TypeError, match=r"x is torch\.float32 but the model is torch\.float64"):
        learner.predict(learner.initial(3), regression(generator).query.x.float())
