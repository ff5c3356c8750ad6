"""What is prepared from a configuration learns, with its options for memory and its order of tasks."""

import pytest
import torch
from small_runs import small

from adjoint_meta.experiments.prepare import prepare
from adjoint_meta.experiments.registry import resolve
from adjoint_meta.training import Trainer, TrainingPlan

pytestmark = pytest.mark.usefixtures("float32")


def test_options_for_memory_reach_the_learner():
    plain, careful = (
        prepare(small(**options)) for options in ({}, {"point_chunk": 3, "chunk_size": 2, "autocast": "bfloat16"})
    )
    assert careful.learner._curvature.point_chunk == 3 and careful.learner._curvature.chunk_size == 2
    assert careful.learner._batched.autocast is torch.bfloat16
    tasks = plain.place(plain.experiment.test)
    found, expected = (prepared.learner.query_losses(tasks) for prepared in (careful, plain))
    assert 1e-7 < float((found - expected).norm() / expected.norm()) < 0.03  # half precision, and it is rounded to
    with pytest.raises(TypeError, match=r"autocast=torch\.bfloat16 evaluates a float32 model .*torch\.float64"):
        prepare(small(autocast="bfloat16", dtype="float64"))


@pytest.mark.parametrize(
    ("method", "options"), [("adjoint", {"horizon": 0.5, "steps": 3}), ("maml", {"steps": 5, "inner_lr": 0.1})]
)
def test_training_on_sine_waves_lowers_the_loss_of_new_tasks(method, options):
    """60 meta-steps on waves lower the query loss of 40 new ones.

    Over eight seeds the ratio to the start was 0.69 ± 0.05 and 0.77 at worst; a meta-gradient that is wrong or not
    used leaves it at 1 or above.
    """
    task = {"train_tasks": 200, "test_tasks": 40}
    prepared = prepare(resolve({"model": {"width": 20}, "task": task, "method": options}, "sine", method))
    test, source = prepared.place(prepared.experiment.test), prepared.experiment.train
    before = float(prepared.learner.query_losses(test).mean())
    optimizer = torch.optim.Adam(prepared.learner.parameters(), lr=0.01)
    Trainer(
        prepared.learner, optimizer, lambda step: prepared.place(source.meta_batch(step, 10, 0)), TrainingPlan(60)
    ).run()
    assert float(prepared.learner.query_losses(test).mean()) < 0.85 * before


def test_tasks_that_return_come_in_one_order():
    options = {"task": {"train_tasks": 4}, "tasks_per_step": 4, "method": {"warm_start": 4}}
    prepared = prepare(resolve(options, "cosmixture", "memory-reduced"))
    expected = prepared.place(prepared.experiment.train[:]).support.x
    assert all(torch.equal(prepared.meta_batch(step).support.x, expected) for step in range(4))
    cold = prepare(resolve({**options, "method": {}}, "cosmixture", "memory-reduced"))
    assert not all(torch.equal(cold.meta_batch(step).support.x, expected) for step in range(4))
    for change, supply in (({"tasks_per_step": 2}, "4 tasks and takes 2"), ({"task": {"train_tasks": 8}}, "8 tasks")):
        with pytest.raises(ValueError, match=rf"warm_start=4 asks for the same 4 tasks .* training has {supply}"):
            prepare(resolve({**options, **change}, "cosmixture", "memory-reduced"))
