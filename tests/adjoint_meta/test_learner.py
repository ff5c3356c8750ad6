from __future__ import annotations

import copy

import pytest
import torch
from problems import CASES, Forwards, case, mlp, regression
from references import Split, relative, through_every_step
from torch import nn

from adjoint_meta import (
    FOMAML,
    MAML,
    AdjointMAML,
    Batch,
    ImplicitMAML,
    MetaLearner,
    Reptile,
    SolverError,
    TaskBatch,
)

mse = nn.functional.mse_loss

METHODS = [
    MAML(steps=3, inner_lr=0.1, learn=("inner_lr", "rates")),
    FOMAML(steps=3, inner_lr=0.1),
    Reptile(steps=3, inner_lr=0.1),
    ImplicitMAML(proximal=5.0, steps=3, inner_lr=0.05, cg_steps=3, cg_tol=0.0, learn=("proximal",)),
    AdjointMAML(horizon=0.5, solver="heun", steps=3, learn=("horizon",)),
    AdjointMAML(horizon=0.5, solver="rk4", steps=3, adjoint="checkpointed", proximal=0.5, learn=("proximal",)),
]


def kind(method: object) -> str:
    """What a method is called in the name of a test."""
    return type(method).__name__


every_method = pytest.mark.parametrize("method", METHODS, ids=kind)


# loss.backward()


@every_method
def test_backward_fills_the_meta_gradient(method, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, method)
    loss = learner(tasks)
    assert loss.shape == () and loss.requires_grad
    loss.backward()
    found = learner.meta_gradient(tasks)
    assert relative(loss.detach(), found.loss.mean()) < 1e-15
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, found.grad[name])
    # On the log scale the gradient is the value times the natural one.
    assert set(learner.log_hyper) == set(method.learned) == set(found.hyper)
    for name, log in learner.log_hyper.items():
        assert torch.equal(log.grad, learner.hyper[name] * found.hyper[name])


def test_shared_parameters_get_their_gradient_too(generator):
    model, tasks = mlp(generator), regression(generator)
    expected = through_every_step(model, mse, tasks, horizon=0.3, steps=3, adapt="2.*")
    MetaLearner(model, mse, MAML(steps=3, inner_lr=0.1), adapt="2.*")(tasks).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected.grad[name]) < 1e-12


def test_frozen_parameters_get_none(generator):
    found = case("frozen", generator)
    learner = MetaLearner(found.model, found.loss, MAML(steps=3))
    result = learner.meta_gradient(TaskBatch(found.points, found.points))
    learner(TaskBatch(found.points, found.points)).backward()
    assert set(result.grad) == {"gain", "head.weight", "head.bias"}
    assert found.model.frozen.weight.grad is None


def test_gradients_scale_and_add_up(generator):
    model, tasks, more = mlp(generator), regression(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(steps=3, learn=("horizon",)))
    one, two = learner.meta_gradient(tasks), learner.meta_gradient(more)
    (learner(tasks) * 8).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, 8 * one.grad[name])
    learner(more).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, 8 * one.grad[name] + two.grad[name]) < 1e-14
    horizon = learner.hyper["horizon"]
    expected = horizon * (8 * one.hyper["horizon"] + two.hyper["horizon"])
    assert relative(learner.log_hyper["horizon"].grad, expected) < 1e-14


def test_the_loss_is_a_term_like_any_other(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=3))
    found = learner.meta_gradient(tasks)
    loss = learner(tasks) + 0.5 * sum((p**2).sum() for p in model.parameters())
    loss.backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, found.grad[name] + parameter.detach()) < 1e-14
    loss.backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, 2 * (found.grad[name] + parameter.detach())) < 1e-14


def test_a_second_derivative_is_refused(generator):
    learner = MetaLearner(mlp(generator), mse, MAML(steps=3))
    gradients = torch.autograd.grad(learner(regression(generator)), list(learner.parameters()), create_graph=True)
    # Nothing hangs on the gradients, so that a second derivative cannot come out wrong.
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradients[0].sum(), list(learner.parameters()))


@pytest.mark.filterwarnings("ignore:the inner steps left the stability interval")  # LBFGS tries wild weights
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
@pytest.mark.parametrize("method", [METHODS[0], METHODS[3], METHODS[4]], ids=kind)
# LBFGS tries long steps, of the horizon too.
@pytest.mark.filterwarnings("ignore:the inner steps left the stability interval")
def test_torchs_optimisers_lower_the_loss(optimiser, method, generator):
    learner, tasks = MetaLearner(mlp(generator), mse, method), regression(generator, points=20)
    steps = optimiser(learner.parameters(), lr=0.02)

    def closure() -> torch.Tensor:
        steps.zero_grad()
        loss = learner(tasks)
        loss.backward()
        return loss

    before = {name: value.clone() for name, value in learner.hyper.items()}
    losses = [float(steps.step(closure).detach()) for _ in range(10)]
    # The exact gradient is a direction of descent, so that small steps must go down.
    assert losses[-1] < losses[0]
    assert all((learner.hyper[name] > 0).all() for name in before)
    assert any((learner.hyper[name] != before[name]).any() for name in before)


def test_grad_scaler(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=3))
    expected = learner.meta_gradient(tasks).grad
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimiser = torch.optim.SGD(learner.parameters(), lr=1.0)
    scaler.scale(learner(tasks)).backward()
    scaler.unscale_(optimiser)
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-14


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)
# With rkc the second meta-gradient starts from what the first one left, a buffer that is kept the same everywhere.
@pytest.mark.parametrize(("setting", "tol"), [({"steps": 3}, 1e-15), ({"solver": "rkc", "rtol": 1e-2}, 1e-2)], ids=str)
def test_distributed_data_parallel(setting, tol, tmp_path, generator):
    model, tasks = mlp(generator), regression(generator)
    method = AdjointMAML(horizon=0.5, **setting, learn=("horizon",))
    expected = MetaLearner(model, mse, method).meta_gradient(tasks)
    learner = MetaLearner(model, mse, method)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(learner)
        for _ in range(2):
            parallel.zero_grad()
            loss = parallel(tasks)
            loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert relative(loss.detach(), expected.loss.mean()) < tol
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, expected.grad[name]) < tol
    assert learner.log_hyper["horizon"].grad is not None


# Evaluation


@every_method
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_it_only_evaluates(method, context, generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, method)
    expected = learner.meta_gradient(tasks).loss
    before = learner.evaluations.n_hvp
    with context():
        loss = learner(tasks)
    assert not loss.requires_grad
    assert learner.evaluations.n_hvp == before
    assert relative(loss, expected.mean()) < 1e-14
    assert relative(learner.query_losses(tasks), expected) < 1e-14
    assert all(p.grad is None for p in learner.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("adapt", [None, "*bias"])
def test_adapting_and_predicting(name, adapt, generator):
    found = case(name, generator)
    if not any(parameter.endswith("bias") for parameter, _ in found.model.named_parameters()):
        pytest.skip("no bias")
    learner = MetaLearner(found.model, found.loss, MAML(steps=2, inner_lr=0.05), adapt=adapt)
    phi = learner.adapt(found.points)
    split = Split(found.model, adapt)
    assert phi.shape == (3, split.theta.numel()) and not phi.requires_grad
    assert torch.equal(learner.initial(2), split.theta.repeat(2, 1))
    predictions = learner.predict(phi, found.points.x)
    losses = learner.query_losses(TaskBatch(found.points, found.points))
    for i in range(3):
        expected = split.predict(phi[i], split.psi, found.points.x[i]).detach()
        assert relative(predictions[i].detach(), expected) < 1e-12
        assert relative(losses[i], found.loss(expected, found.points.y[i])) < 1e-12


def test_support_problem_is_for_an_inner_solve_of_ones_own(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=1, inner_lr=0.1))
    problem, theta = learner.support_problem(tasks.support), learner.initial(3)
    assert relative(theta - 0.1 * problem.gradient(theta), learner.adapt(tasks.support)) < 1e-15


def test_adapting_leaves_the_model_and_its_state_alone(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(steps=3))
    before = copy.deepcopy(learner.state_dict())
    state = torch.random.get_rng_state()
    learner.adapt(tasks.support)
    learner.meta_gradient(tasks)
    learner(tasks)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_learner_follows_its_model(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, MAML(steps=3))
    learner.meta_gradient(tasks)
    with torch.no_grad():
        model[0].weight += 0.3
    fresh = MetaLearner(copy.deepcopy(model), mse, MAML(steps=3))
    assert torch.equal(learner.meta_gradient(tasks).loss, fresh.meta_gradient(tasks).loss)


def test_copies_are_independent(generator):
    model, tasks = mlp(generator), regression(generator)
    learner = MetaLearner(model, mse, AdjointMAML(steps=3, learn=("horizon",)))
    expected = learner.meta_gradient(tasks)
    copied = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        learner.log_hyper["horizon"] += 1.0
    found = copied.meta_gradient(tasks)
    assert torch.equal(found.loss, expected.loss)
    copied(tasks).backward()
    assert copied.model[0].weight.grad is not None and model[0].weight.grad is None


def test_state_dict_round_trip(generator):
    method = AdjointMAML(horizon=0.7, steps=3, proximal=0.2, learn=("horizon", "rates", "proximal"))
    learner, tasks = MetaLearner(mlp(generator), mse, method), regression(generator)
    with torch.no_grad():
        for parameter in learner.log_hyper.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    other = MetaLearner(mlp(generator), mse, AdjointMAML(horizon=2.0, steps=3, proximal=1.0, learn=method.learn))
    state = learner.state_dict()
    assert set(state) == {f"model.{name}" for name, _ in learner.model.named_parameters()} | {
        "log_hyper.horizon",
        "log_hyper.rates",
        "log_hyper.proximal",
    }
    other.load_state_dict(state)
    assert torch.equal(other.meta_gradient(tasks).loss, learner.meta_gradient(tasks).loss)
    assert torch.allclose(other.hyper["horizon"], torch.exp(state["log_hyper.horizon"]))


@every_method
def test_float32_everywhere(method, generator):
    model, tasks = mlp(generator), regression(generator)
    exact = MetaLearner(model, mse, method).meta_gradient(tasks)
    learner = MetaLearner(copy.deepcopy(model).float(), mse, method)
    tasks = tasks.to(dtype=torch.float32)
    found = learner.meta_gradient(tasks)
    learner(tasks).backward()
    phi = learner.adapt(tasks.support)
    tensors = [found.loss, *found.grad.values(), *found.hyper.values(), phi, learner.predict(phi, tasks.query.x)]
    tensors += [p.grad for p in learner.parameters()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert relative(found.loss.double(), exact.loss) < 1e-5
    for name, gradient in exact.grad.items():
        assert relative(found.grad[name].double(), gradient) < 1e-4


def test_the_learner_moves_with_to(generator):
    learner, tasks = MetaLearner(mlp(generator), mse, MAML(steps=2, learn=("rates",))), regression(generator)
    learner.float()
    found = learner.meta_gradient(tasks.to(dtype=torch.float32))
    assert {x.dtype for x in (*found.grad.values(), *found.hyper.values())} == {torch.float32}
    with pytest.raises(TypeError, match=r"use tasks\.to\(dtype=torch\.float32\)"):
        learner(tasks)


# No loop over tasks


@every_method
@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
def test_calls_of_the_module_do_not_depend_on_the_number_of_tasks(method, mode, generator):
    model = mlp(generator)
    forwards, calls = Forwards(model), set()
    for tasks in (1, 3, 50):
        learner, batch = MetaLearner(model, mse, method, mode=mode), regression(generator, tasks=tasks)
        stats = {}
        # Targets are held against predictions once for each new shape: the points of support and query have one.
        checks = 1
        calls.add(forwards.during(lambda: stats.update(learner.meta_gradient(batch).stats)) - checks)  # noqa: B023
        calls.add(forwards.during(lambda: learner.meta_gradient(batch)))  # noqa: B023
    (count,) = calls
    if isinstance(method, ImplicitMAML) and mode == "reverse_over_reverse":
        # All products of CG share one forward pass and its gradient's graph.
        assert count == stats["n_grad"] + 1
    else:
        assert count == stats["n_grad"] + stats["n_hvp"]


def test_chunks_call_the_module_once_each(generator):
    model = mlp(generator)
    learner = MetaLearner(model, mse, MAML(steps=2), chunk_size=2)
    batch = regression(generator, tasks=5)
    learner.meta_gradient(batch)
    # 2 gradients, 2 products and the query's gradient, each in 3 chunks.
    assert Forwards(model).during(lambda: learner.meta_gradient(batch)) == (2 + 2 + 1) * 3


# What is refused


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
