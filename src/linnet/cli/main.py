# SPDX-License-Identifier: Apache-2.0
"""``linnet``: the commands, and how errors reach a person: one clear sentence, an exit status, no traceback."""

import contextlib
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

import typer

import linnet
from linnet.cli import (
    batching,
    caching,
    chatting,
    compressing,
    converting,
    demonstrating,
    doctoring,
    evaluating,
    generating,
    inspecting,
    serving,
)
from linnet.cli.bench import serving as benching
from linnet.cli.words import Command, Group, UsageError, refusal
from linnet.errors import LinnetError, machine_sentence

INTERRUPTED, READER_GONE = 130, 141
"""As a shell counts a process that SIGINT or SIGPIPE ended."""

app = typer.Typer(
    name="linnet",
    cls=Group,
    help="Make a large language model small, prove what that cost, and serve it fast.",
    epilog="Start with: linnet demo. Every option can also be set as LINNET_<COMMAND>_<OPTION> in the environment.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LINNET"},
)
app.command("compress", cls=Command)(compressing.compress)
app.command("convert", cls=Command)(converting.convert)
app.command("eval", cls=Command)(evaluating.evaluate)
app.command("generate", cls=Command)(generating.generate)
app.command("chat", cls=Command)(chatting.chat)
app.command("run", cls=Command, help="The same as chat.")(chatting.chat)
app.command("serve", cls=Command)(serving.serve)
app.command("batch", cls=Command)(batching.batch)
app.command("inspect", cls=Command)(inspecting.inspect)
app.command("doctor", cls=Command)(doctoring.doctor)
app.command("env", cls=Command)(inspecting.environment)
app.command("demo", cls=Command)(demonstrating.demo)
app.add_typer(caching.cache, name="cache")
app.add_typer(benching.bench, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"linnet {linnet.__version__}")
        raise typer.Exit()


VERSION = typer.Option(
    "--version", "-v", is_eager=True, callback=_show_version, help="Show the version and exit.", show_envvar=False
)


@app.callback()
def root(version: Annotated[bool, VERSION] = False) -> None:
    """What holds for no command in particular."""


def main() -> None:
    """Entry point of the ``linnet`` program."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to stop
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and say what went wrong, if anything did; returns the exit status."""
    try:
        # Not standalone: the parser's own errors come here too and are said like all others.
        status = app(list(arguments), prog_name="linnet", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk can still be told
    except UsageError as error:
        sentence = refusal(error)
        return _say(sentence, error.exit_code) if sentence else int(error.exit_code)
    except LinnetError as error:
        return _say(f"linnet: {error}", error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        return _say("linnet: interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output is gone (`linnet inspect | head`)
        _discard_output()
        return READER_GONE
    except OSError as error:
        _discard_output()
        return _say(f"linnet: {machine_sentence(error)}", 1)
    except MemoryError as error:
        return _say(f"linnet: {machine_sentence(error)}", 1)
    if status == INTERRUPTED:
        return _say("linnet: interrupted", INTERRUPTED)
    return status if isinstance(status, int) else 0


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _discard_output() -> None:
    """What is left in the buffer has nowhere to go; Python would complain again while flushing."""
    with contextlib.suppress(OSError, ValueError):  # captured by a test: nothing to discard
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
