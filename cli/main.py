"""The door: subcommands loaded when they are called, errors as one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings

import click
from click.exceptions import NoArgsIsHelpError

import adjoint_meta

from .warning_lines import WarningLines

# name → (module, one line). Nothing heavy is imported for --help.
COMMANDS = {
    "train": ("train", "Meta-train on an experiment and test the result."),
    "evaluate": ("evaluate", "Test a trained run again."),
    "compare": ("compare", "Compare methods on one experiment, with intervals and paired tests."),
    "reproduce": ("reproduce", "Make the figures and tables of the papers again."),
    "list": ("listing", "List experiments, methods, solvers and studies."),
    "data": ("data", "List, fetch, add and verify data sets."),
    "check-grad": ("check_grad", "Compare meta-gradients with exact reverse mode."),
    "bench": ("bench", "Measure solvers, adjoints and meta-gradients beside the A-MAML paper and other packages."),
    "doctor": ("doctor", "Show versions and devices, and check a gradient."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a first session."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"adjoint_meta.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown command with its neighbours."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS) or list(COMMANDS)
            raise click.UsageError(f"unknown command {args[0]!r}; expected {' or '.join(close)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the one-line helps without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(adjoint_meta.__version__, prog_name="adjoint-meta")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def adjoint_meta_command(debug: bool) -> None:
    """Meta-learning whose inner adaptation is a gradient flow, with the exact adjoint for its meta-gradient.

    `adjoint-meta train` runs the embedded default in about a minute.
    """
    del debug  # read by main, which sees errors before and after the commands run


def main() -> None:
    """Run the command line and exit: 0 done, 1 the run failed, 2 wrong usage or bad input, 130 interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # --debug is understood anywhere on the line, as people add it at the end of what just failed
    arguments = (["--debug"] if debug else []) + [argument for argument in arguments if argument != "--debug"]
    shown = WarningLines()
    warnings.showwarning = shown.show
    # All of them, to be counted; filters that the user asks for come before this one.
    warnings.simplefilter("always", RuntimeWarning, append=True)
    try:
        adjoint_meta_command.main(arguments, prog_name="adjoint-meta", standalone_mode=False)
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ValueError | TypeError):
            _fail(str(error), 2)
        if isinstance(error, RuntimeError | OSError | MemoryError):
            _fail(str(error) or type(error).__name__, 1)
        _fail(f"{type(error).__name__}: {error}; this is a bug, please report it with the output of --debug", 1)
    finally:
        shown.finish()


def _fail(message: str, code: int) -> None:
    """Print one line and exit."""
    click.echo(f"adjoint-meta: {' '.join(message.split())}", err=True)
    sys.exit(code)
