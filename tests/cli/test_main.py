"""The door: help without torch, names with their neighbours, one line for every error, and its exit code."""

import math
import os
import subprocess
import sys
import time
import warnings

import pytest
import torch

import adjoint_meta

COMMANDS = ("train", "evaluate", "list", "data", "check-grad", "doctor")


@pytest.fixture
def call(invoke):
    return invoke


def start(root, *arguments, options=(), **others):
    return subprocess.run(
        [sys.executable, *options, "-m", "adjoint_meta.cli", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        **others,
    )


# Help


def test_help_answers_in_under_half_a_second(root):
    start(root, "--help")  # byte code and disk caches
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        done = start(root, "--help")
        best = min(best, time.perf_counter() - started)
        assert done.returncode == 0 and done.stderr == ""
    assert best < 0.5
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--version",), ("trian",)])
def test_nothing_heavy_is_imported_for_it(root, arguments):
    done = start(root, *arguments, options=("-X", "importtime"))
    imported = {line.rsplit("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "scipy", "matplotlib", "pydantic", "yaml", "rich", "pooch"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(call, name):
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "") and out.startswith(f"Usage: adjoint-meta {name}") and "--help" in out


def test_the_version_is_the_packages(call, root):
    code, out, _ = call("--version")
    assert code == 0 and adjoint_meta.__version__ in out
    assert start(root, "--version").stdout == out


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_without_a_command_the_help_is_readable(call, arguments):
    code, out, err = call(*arguments)
    assert code in (0, 2)
    shown = (out + err).splitlines()
    assert len(shown) > 8 and any(line.startswith("Usage: ") for line in shown)


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "unknown command 'trian'; expected train"),
        (("evalute", "x"), "unknown command 'evalute'; expected evaluate"),
        (("zzz",), "unknown command 'zzz'; expected train or evaluate"),
        (("--bogus",), "No such option '--bogus'"),
        (("train", "--sed", "3"), "--seed"),
        (("train", "--seed", "x"), "'x' is not a valid integer"),
        (("train", "--seed"), "--seed"),
        (("train", "sine", "alpine"), "alpine"),
        (("train", "sien"), "unknown experiment 'sien'; did you mean 'sine'?"),
        (("check-grad", "sine", "--method", "mamml"), "unknown method 'mamml'; did you mean 'maml'"),
        (("evaluate",), "Missing argument 'RUN_DIR'"),
        (("evaluate", "x", "--tasks", "many"), "'many' is not a valid integer"),
        (("list", "more"), "more"),
        (("data", "lst"), "list"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(call, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("adjoint-meta: ") and message in line


def test_a_process_of_its_own_exits_the_same_way(root):
    done = start(root, "train", "sien")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("adjoint-meta: unknown experiment 'sien'; did you mean 'sine'?\n")


# Errors


@pytest.fixture
def failing(monkeypatch):
    """`adjoint-meta list` raises what it is told to."""

    def fail(error):
        import click

        from adjoint_meta.cli import listing

        @click.command()
        def command():
            raise error

        monkeypatch.setattr(listing, "command", command)

    return fail


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong\n  value"), 2),
        (TypeError("wrong value"), 2),
        (RuntimeError("wrong value"), 1),
        (adjoint_meta.SolverError("wrong value"), 1),
        (OSError("wrong value"), 1),
        (MemoryError("wrong value"), 1),
        (torch.OutOfMemoryError("wrong value"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_and_its_code(call, failing, error, code):
    failing(error)
    assert call("list") == (code, "", "adjoint-meta: wrong value\n")


@pytest.mark.parametrize("error", [MemoryError(), NotImplementedError()], ids=lambda value: type(value).__name__)
def test_an_error_without_words_says_its_name(call, failing, error):
    failing(error)
    assert call("list") == (1, "", f"adjoint-meta: {type(error).__name__}\n")


@pytest.mark.parametrize(
    "error", [KeyError("trainer"), IndexError("3"), AttributeError("x"), ZeroDivisionError("y"), AssertionError("z")]
)
def test_an_error_nobody_thought_of_is_one_line_too(call, failing, error):
    failing(error)
    code, out, err = call("list")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("adjoint-meta: ") and type(error).__name__ in line and "--debug" in line


@pytest.mark.parametrize("place", [("--debug", "list"), ("list", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(call, failing, place):
    failing(ValueError("wrong value"))
    code, _, err = call(*place)
    assert code == 2 and "Traceback (most recent call last)" in err and "in command" in err
    assert err.splitlines()[-1] == "adjoint-meta: wrong value"


def test_an_interruption_is_exit_code_130(call, failing):
    failing(KeyboardInterrupt())
    code, out, err = call("list")
    assert (code, out, err.strip()) == (130, "", "adjoint-meta: interrupted")  # after the ^C that a terminal echoes


def test_a_warning_is_one_line(call, monkeypatch):
    import click

    from adjoint_meta.cli import listing

    @click.command()
    def command():
        warnings.warn("first line\n  second line", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr(listing, "command", command)
    warnings.simplefilter("always")
    assert call("list") == (0, "", "warning: first line second line\n")


def test_warnings_that_differ_in_numbers_are_shown_once(call, monkeypatch):
    import click

    from adjoint_meta.cli import listing

    @click.command()
    def command():
        for size in (1.5, 1e-3, math.nan):
            warnings.warn(f"h‖H‖ reached {size} of its limit", RuntimeWarning, stacklevel=1)
        for _ in range(2):
            warnings.warn("something else", RuntimeWarning, stacklevel=1)
        raise RuntimeError("it failed")

    monkeypatch.setattr(listing, "command", command)
    warnings.simplefilter("always")
    code, _, errors = call("list")
    assert code == 1 and errors.splitlines() == [
        "warning: h‖H‖ reached 1.5 of its limit",
        "warning: something else",
        "adjoint-meta: it failed",
        "warning: 2 more times, at last: h‖H‖ reached nan of its limit",
        "warning: once more: something else",
    ]


def test_a_reader_that_has_seen_enough_is_no_error(root):
    """`adjoint-meta list | head -1`"""
    process = subprocess.Popen(
        [sys.executable, "-m", "adjoint_meta.cli", "list"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 1) and "Traceback" not in err and "BrokenPipe" not in err
