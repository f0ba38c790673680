"""The command `lvd-juice`: runs a subcommand, and turns what goes wrong into a line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import click

from pyjuice_lvd.errors import LVDJuiceError, RefusedError

PROGRAM = "lvd-juice"


class _Entry(NamedTuple):
    target: str  # module:attribute of a click command
    help: str


# Every subcommand. A module is imported when its command runs, so that `--help` waits for no PyTorch and no Julia.
COMMANDS: dict[str, _Entry] = {
    "fit": _Entry("pyjuice_lvd.cli.fit:fit", "Train a model and report its held-out bpd."),
    "eval": _Entry("pyjuice_lvd.cli.eval:evaluate", "Report a run's held-out bpd with its standard error."),
    "sample": _Entry("pyjuice_lvd.cli.sample:sample", "Draw images from a run's model."),
    "inpaint": _Entry("pyjuice_lvd.cli.inpaint:inpaint", "Draw the hidden pixels of images, given the others."),
    "export": _Entry("pyjuice_lvd.cli.export:export", "Write a run's circuits to files that Juice.jl reads."),
    "gap": _Entry("pyjuice_lvd.cli.gap:gap", "Compare a run's model with its teacher, in nats and bpd."),
    "compress": _Entry("pyjuice_lvd.cli.compress:compress", "Code images, or rows, with a run's model, without loss."),
    "decompress": _Entry("pyjuice_lvd.cli.decompress:decompress", "Decode what compress wrote."),
    "report": _Entry("pyjuice_lvd.cli.report:report", "Put a run's figures and plots on one HTML page."),
    "bench": _Entry("pyjuice_lvd.cli.bench:bench", "Measure the engine's speed on this machine, as ratios."),
    "setup": _Entry("pyjuice_lvd.cli.setup:setup", "Provide Julia for this machine."),
    "doctor": _Entry("pyjuice_lvd.cli.doctor:doctor", "Say what is found on this machine and what is missing."),
}


class _Commands(click.Group):
    """A group whose subcommands are those of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@dataclass
class _Session:
    """What the error handling has to know of the command line."""

    debug: bool = False


def _keep_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    # While the options are parsed, not in `cli`: the subcommand's module is imported in between, and that too may fail.
    ctx.ensure_object(_Session).debug = value


@click.group(
    PROGRAM, cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--debug",
    is_flag=True,
    envvar="LVD_DEBUG",
    expose_value=False,
    callback=_keep_debug,
    help="Show the traceback of an error (also LVD_DEBUG=1).",
)
@click.version_option(package_name="lvd-juice", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Tractable density models of images: probabilistic circuits by latent variable distillation."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(args: Sequence[str] | None = None) -> int:
    """Run `lvd-juice` with `args` (default: `sys.argv[1:]`).

    Returns the exit status: 0, 2 for bad input or usage, 1 for a failed run, 130 after Ctrl-C.
    """
    session = _Session()
    try:
        status = cli.main(args, prog_name=PROGRAM, standalone_mode=False, obj=session)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read stdout is gone, as in `lvd-juice ... | head`
        _drop_stdout()
        return 1
    except Exception as error:
        status = _report(error, session.debug)
        shared = sys.modules.get("torch.distributed")
        if shared is not None and shared.is_available() and shared.is_initialized():
            os._exit(status)  # threads of the process group, whose others may be gone, would abort Python's own end
        return status
    return status if isinstance(status, int) else 0


def _report(error: Exception, debug: bool) -> int:
    """Say on stderr, in one line, what went wrong; returns the exit status."""
    status = 1
    if isinstance(error, RefusedError):  # it was said
        return error.exit_status
    if isinstance(error, click.Abort):  # click's form of KeyboardInterrupt
        notes = getattr(error.__cause__, "__notes__", ["no file was left half written"])
        line, status = f"interrupted: {'; '.join(notes)}", 130
    elif isinstance(error, click.ClickException):
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        line, status = f"error: {error.format_message().rstrip('.')}{hint}", error.exit_code
    elif isinstance(error, LVDJuiceError):
        line, status = f"error: {error}", error.exit_status
    elif isinstance(error, OSError):
        line = "error: " + ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    else:
        text = ": ".join(part for part in (type(error).__name__, str(error)) if part)
        line = f"unexpected error: {text} (run {PROGRAM} --debug ... for the traceback)"
    if debug and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    click.echo(f"{PROGRAM}: {' '.join(line.split())}", err=True)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk behind stdout: do not let Python stumble over it once more at its exit
        _drop_stdout()
    return status


def _drop_stdout() -> None:
    """Send what is still buffered for stdout, and all that follows, nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
