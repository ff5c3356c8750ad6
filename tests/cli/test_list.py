import json

from click.testing import CliRunner

from adjoint_meta.cli.listing import command
from adjoint_meta.experiments.config import METHODS
from adjoint_meta.experiments.registry import EXPERIMENTS
from adjoint_meta.experiments.studies.catalogue import STUDIES
from adjoint_meta.inner_solvers import SOLVERS

KINDS = {"experiments": EXPERIMENTS, "methods": METHODS, "solvers": SOLVERS, "studies": STUDIES}


def run(*arguments):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0 and result.stderr == ""
    return result.stdout


def test_every_name_has_one_line():
    lines = run().splitlines()
    headings = [line for line in lines if not line.startswith(" ")]
    assert headings == list(KINDS)
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line.startswith("  ")}
    assert set(shown) == {name for kind in KINDS.values() for name in kind}
    assert all(len(text) > 10 for text in shown.values())
    assert max(map(len, lines)) <= 140


def test_the_names_of_the_contract_are_there():
    found = json.loads(run("--json"))
    assert {"sine", "cosmixture", "alpine", "movielens-100k", "movielens-1m", "jester", "ratings-toy"} <= set(
        found["experiments"]
    )
    assert {"adjoint", "imaml", "maml", "fomaml", "reptile"} <= set(found["methods"])
    assert {
        "euler",
        "midpoint",
        "heun",
        "rk4",
        "bosh3",
        "dopri5",
        "tsit5",
        "rkc",
        "implicit_euler",
        "sdirk2",
        "auto",
    } <= set(found["solvers"])


def test_json_is_one_object_with_the_same_lines():
    text = run("--json")
    assert len(text.splitlines()) == 1
    found = json.loads(text)
    assert {kind: set(names) for kind, names in found.items()} == {kind: set(names) for kind, names in KINDS.items()}
    plain = run()
    for names in found.values():
        for name, what in names.items():
            assert any(line.split() == [name, *what.split()] for line in plain.splitlines())


def test_the_order_of_a_solver_is_said():
    found = json.loads(run("--json"))["solvers"]
    orders = {"euler": 1, "midpoint": 2, "heun": 2, "bosh3": 3, "rk4": 4, "dopri5": 5, "tsit5": 5}
    for name, order in orders.items():
        assert found[name].startswith(f"order {order}")
