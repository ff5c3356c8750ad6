"""The code in the README and the guide runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", ["README.md", "docs/guide.md", "docs/image_data.md", "docs/solvers.md"])
def test_examples_run(path, capsys):
    names = {}
    found = blocks(path)
    assert found
    for code in found:
        # The list of methods shows patterns of a model that it does not define.
        code = code.replace('am.MetaLearner(model, loss, method, adapt="head.*")', "pass")
        exec(compile(code, path, "exec"), names)
    capsys.readouterr()


def test_command_line_page_names_every_command():
    from adjoint_meta.cli.main import COMMANDS

    page = (ROOT / "docs/command_line.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in COMMANDS)


def test_readme_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
