"""One task tried before many: what would fail later, or be silently wrong, is refused in one line."""

import pytest
import torch
from torch import nn

import adjoint_meta as am

X, Y = torch.linspace(-1, 1, 12).reshape(2, 3, 2), torch.linspace(0, 1, 6).reshape(2, 3, 1)


def learner(model, loss=None, **options):
    return am.MetaLearner(model.double(), loss or nn.MSELoss(), am.MAML(steps=2, inner_lr=0.1), **options)


def tasks(x=X, y=Y):
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    return am.TaskBatch(am.Batch(x, y), am.Batch(x, y))


class Counting(nn.Module):
    def __init__(self, reassign):
        super().__init__()
        self.linear, self.reassign = nn.Linear(2, 1), reassign
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x):
        if self.reassign:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return self.linear(x) * self.calls


@pytest.mark.parametrize("reassign", [False, True])
def test_a_buffer_that_changes_is_refused_and_restored(reassign):
    model = Counting(reassign)
    with pytest.raises(ValueError, match="changes its buffer 'calls'"):
        learner(model)(tasks())
    assert float(model.calls) == 1.0 and "calls" in dict(model.named_buffers())


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.body(x).detach())


@pytest.mark.parametrize("adapt", [None, "head.*"])
def test_a_parameter_without_influence_is_no_silent_zero(adapt):
    with pytest.raises(ValueError, match=r"'body\.weight' does not influence .*requires_grad_\(False\)"):
        learner(Detached(), adapt=adapt)(tasks())
    frozen = Detached()
    frozen.body.requires_grad_(False)
    assert torch.isfinite(learner(frozen)(tasks()))


@pytest.mark.parametrize(
    ("x", "model", "message"),
    [
        (torch.ones(2, 3, 5), nn.Linear(2, 1), r"cannot take support\.x of one task, \[3, 5\]"),
        (torch.ones(2, 3, 2, dtype=torch.long), nn.Linear(2, 1), r"cannot take support\.x .*torch\.int64"),
        (torch.full((2, 3), 9), nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 1)), r"cannot take support\.x .*range"),
    ],
)
def test_inputs_that_the_model_cannot_take(x, model, message):
    with pytest.raises(ValueError, match=message) as caught:
        learner(model)(tasks(x))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("y", [torch.ones(2, 3), torch.full((2, 3), 7)])
def test_targets_that_the_loss_cannot_take(y):
    with pytest.raises(ValueError, match=r"the loss cannot take predictions \[3, 4\].*support\.y"):
        learner(nn.Linear(2, 4), nn.CrossEntropyLoss())(tasks(y=y))


def test_classes_are_welcome():
    assert torch.isfinite(learner(nn.Linear(2, 4), nn.CrossEntropyLoss())(tasks(y=torch.tensor([[0, 1, 3]] * 2))))


def test_a_loss_of_ones_own_that_may_broadcast_is_warned_of_once():
    made = learner(nn.Linear(2, 1), lambda p, y: ((p - y) ** 2).mean())
    with pytest.warns(UserWarning, match=r"predicts \[3, 1\] .* support\.y is \[3\]"):
        made(tasks(y=Y[..., 0]))
    made(tasks(y=Y[..., 0]))  # warnings are errors in the tests


def test_a_model_changed_behind_the_learner():
    model = nn.Sequential(nn.Linear(2, 1))
    made = learner(model)
    model[0] = nn.Linear(2, 5).double()
    with pytest.raises(ValueError, match="build the MetaLearner after changing the model"):
        made(tasks())


def test_tensors_made_under_inference_mode():
    made = learner(nn.Linear(2, 1))
    expected = made.query_losses(tasks())
    with torch.inference_mode():
        inside = tasks(X + 0, Y + 0)
        assert torch.equal(made.query_losses(inside), expected)


@pytest.mark.parametrize("mode", ["reverse_over_reverse", "forward_over_reverse"])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_a_hessian_of_a_loss_that_forgot_to_reduce(mode, shape):
    with pytest.raises(ValueError, match="loss must return a scalar"):
        am.hvp(lambda p: p**2, torch.ones(shape), torch.ones(shape), mode=mode)


def test_wrong_arguments_of_a_hessian():
    with pytest.raises(TypeError, match="phi must be a tensor"):
        am.HessianOperator(lambda p: p.sum(), [1.0])
    with pytest.raises(TypeError, match="damping must be a number"):
        am.HessianOperator(lambda p: (p**2).sum(), torch.ones(2), damping="x")
