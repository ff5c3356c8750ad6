"""Pictures of a run: valid PNGs of sensible size that show what they say they show."""

import matplotlib.image
import numpy as np
import pytest
import torch

from adjoint_meta.evaluation import Evaluation, adam_curve, evaluate
from adjoint_meta.experiments import plots
from adjoint_meta.experiments.prepare import prepare
from adjoint_meta.experiments.registry import resolve

TASK = {"train_tasks": 4, "test_tasks": 3, "shots": 5, "queries": 5, "test_queries": 6}
FEW = {"model": {"width": 5}, "method": {"steps": 2, "horizon": 0.2}}


@pytest.fixture(scope="module", params=["sine", "alpine", "ratings-toy"])
def prepared(request):
    task = {"test_users": 4} if request.param == "ratings-toy" else TASK
    return prepare(resolve({**FEW, "task": task}, request.param))


def records(count=6, validated=False):
    drawn = np.random.default_rng(0).uniform(0.2, 0.9, count)
    made = [{"step": step + 1, "loss": float(loss), "seconds": 0.1} for step, loss in enumerate(drawn)]
    if validated:
        for record in made[1::2]:
            record["validation"] = record["loss"] / 2
    return made


def colours(path, folder=None):
    """The pixels [height, width, 3], and how many differ from the background."""
    image = matplotlib.image.imread(path)[..., :3]
    return image, (np.abs(image - 1.0).max(axis=2) > 0.05).mean()


def shown(figure, tmp_path, width, height):
    path = tmp_path / "figure.png"
    plots.save(figure, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [each.name for each in tmp_path.iterdir()] == ["figure.png"]
    image, share = colours(path)
    assert image.shape[1] == pytest.approx(width * 150, abs=2) and image.shape[0] == pytest.approx(height * 150, abs=2)
    assert image.shape[1] >= 1000 and image.shape[0] >= 500  # legible on a slide
    assert share > 0.01
    return image


def texts(axes):
    legend = axes.get_legend()
    return [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()] + (
        [text.get_text() for text in legend.get_texts()] if legend else []
    )


@pytest.mark.parametrize("adam", [False, True])
def test_curves_show_training_and_test(prepared, tmp_path, adam):
    test = prepared.place(prepared.experiment.test)
    result = evaluate(prepared.learner, test, prepared.experiment.measure)
    curve = adam_curve(prepared.learner, test, prepared.experiment.measure, epochs=20, every=10) if adam else []
    made = plots.curves(records(), prepared.experiment, result, curve, title="a run")
    left, right = made.axes
    line = left.get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert line.get_ydata().tolist() == [record["loss"] for record in records()]
    assert left.get_xlabel() == "meta-step" and left.get_ylabel() and right.get_ylabel()
    assert "a run" in made.get_suptitle()
    assert f"{len(test)} test tasks" in right.get_title()
    if adam:
        means = [float(values.mean()) for _, values in curve]
        assert right.get_lines()[0].get_ydata() == pytest.approx(means)
        assert any(f"own inner solve: {float(result.after.mean()):.3f}" in text for text in texts(right))
    else:
        factor = next(iter(prepared.experiment.units.values()), 1.0)
        means = [factor * float(values.mean()) for values in (result.before, result.after)]
        assert any(
            line.get_ydata() == pytest.approx(means, rel=1e-5)
            for line in right.get_lines()
            if len(line.get_ydata()) == 2
        )
        for name, values in prepared.experiment.baselines.items():
            assert any(
                f"{name.replace('_', ' ')}: {float(values.mean()) * factor:.3f}" in text for text in texts(right)
            )
    shown(made, tmp_path, 10.8, 3.9)


def test_steps_that_were_skipped_are_left_out(prepared):
    made = records()
    made[2]["loss"] = None
    result = Evaluation(torch.tensor([0.5, 0.6]), torch.tensor([0.4, 0.5]))
    figure = plots.curves(made, prepared.experiment, result, [], title="a run")
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_of_one_meta_step_or_none_is_drawn_too(prepared, tmp_path, count):
    result = Evaluation(torch.tensor([0.5]), torch.tensor([0.4]))
    shown(plots.curves(records(count), prepared.experiment, result, [], title="short"), tmp_path, 10.8, 3.9)


def test_one_test_task_has_no_interval_and_no_warning(prepared, tmp_path):
    result = Evaluation(torch.tensor([0.5]), torch.tensor([0.4]))
    curve = [(0, torch.tensor([0.5])), (10, torch.tensor([0.45]))]
    shown(plots.curves(records(), prepared.experiment, result, curve, title="one"), tmp_path, 10.8, 3.9)


def test_validations_have_an_axis_of_their_own(prepared, tmp_path):
    result = Evaluation(torch.tensor([0.5, 0.6]), torch.tensor([0.4, 0.5]))
    figure = plots.curves(records(validated=True), prepared.experiment, result, [], title="validated")
    twin = next(axes for axes in figure.axes if "validation" in axes.get_ylabel())
    assert twin.get_lines()[0].get_xdata().tolist() == [2, 4, 6]
    shown(figure, tmp_path, 10.8, 3.9)


def test_a_long_run_is_smoothed_by_a_running_median(prepared):
    result = Evaluation(torch.tensor([0.5, 0.6]), torch.tensor([0.4, 0.5]))
    drawn = records(200)
    figure = plots.curves(drawn, prepared.experiment, result, [], title="long")
    raw, smooth = figure.axes[0].get_lines()[:2]
    losses = np.array([record["loss"] for record in drawn])
    assert raw.get_ydata() == pytest.approx(losses)
    window = int("".join(filter(str.isdigit, smooth.get_label())))
    assert window > 1 and len(smooth.get_ydata()) == 200
    values = smooth.get_ydata()
    # the label tells how many losses each point is the median of
    assert values[150] == pytest.approx(np.median(losses[151 - window : 151]))
    assert values.std() < 0.7 * losses.std()


def test_a_task_before_and_after_adaptation(tmp_path):
    """On a trained scene the line after adaptation is the model's; support points lie on the task's own curve."""
    made = prepare(resolve({**FEW, "task": TASK, "method": {"steps": 20, "horizon": 4.0}}, "sine"))
    scene = made.experiment.scene
    figure = plots.adaptation(made, scene, title="sine")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"the task", "before adaptation", "after adaptation", "support points"}
    x, truth = lines["the task"].get_data()
    assert x[0] == pytest.approx(-5) and x[-1] == pytest.approx(5) and len(x) == 201
    points = lines["support points"].get_data()
    assert len(points[0]) == 5
    # a grid of 201 points interpolates a sine wave to (0.05)²/8 of its amplitude
    np.testing.assert_allclose(np.interp(points[0], x, truth), points[1], atol=2e-3)
    with torch.no_grad():
        start = made.learner.model(scene.x.float())[:, 0]
    np.testing.assert_allclose(lines["before adaptation"].get_ydata(), start, atol=1e-5)
    after = lines["after adaptation"].get_ydata()
    errors = [np.abs(np.interp(points[0], x, values) - points[1]).mean() for values in (start.numpy(), after)]
    assert errors[1] < errors[0]
    assert "sine" in figure.get_suptitle() and axes.get_xlabel() == "x"
    image = shown(figure, tmp_path, 7, 3.9)
    for colour in (plots.BLUE, plots.ORANGE, plots.RED):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(image - rgb).max(axis=2) < 0.02).sum() > 100


def test_a_task_in_two_dimensions_is_three_maps_of_one_scale(tmp_path):
    made = prepare(resolve({**FEW, "task": TASK}, "cosmixture"))
    scene = made.experiment.scene
    figure = plots.adaptation(made, scene, title="cosmixture")
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "x₁"]
    assert len(panels) == 3
    meshes = [axes.collections[0] for axes in panels]
    assert len({mesh.get_clim() for mesh in meshes}) == 1
    truth, before, after = (np.asarray(mesh.get_array()).reshape(61, 61) for mesh in meshes)
    # rows of a picture are x₂, columns x₁
    np.testing.assert_allclose(truth, scene.y.reshape(61, 61).T, atol=1e-12)
    with torch.no_grad():
        start = made.learner.model(scene.x.float())[:, 0]
    np.testing.assert_allclose(before, start.reshape(61, 61).T, atol=1e-5)
    error = np.sqrt(np.mean((after - truth) ** 2))
    assert f"RMSE {error:.3f}" in panels[2].get_title() and "support points" in panels[0].get_title()
    points = panels[0].get_lines()[0].get_data()
    np.testing.assert_allclose(np.stack(points), scene.support_x.T, atol=1e-12)
    shown(figure, tmp_path, 12.3, 4.0)


def test_a_picture_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure, _ = plots.figure(1)

    def savefig(target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", savefig)
    with pytest.raises(OSError, match="No space left"):
        plots.save(figure, path)
    assert path.read_bytes() == b"old"
