# SPDX-License-Identifier: Apache-2.0
"""``linnet``: the commands, and how errors reach a person: one clear sentence, an exit status, no traceback."""

import os
import sys

import typer

from linnet.cli import caching, compressing, demonstrating, evaluating, generating, inspecting, serving
from linnet.errors import LinnetError

app = typer.Typer(
    name="linnet",
    help="Make a large language model small, prove what that cost, and serve it fast.",
    epilog="Start with: linnet demo. Every option can also be set as LINNET_<COMMAND>_<OPTION> in the environment.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LINNET"},
)
app.command("compress")(compressing.compress)
app.command("eval")(evaluating.evaluate)
app.command("generate")(generating.generate)
app.command("serve")(serving.serve)
app.command("inspect")(inspecting.inspect)
app.command("env")(inspecting.environment)
app.command("demo")(demonstrating.demo)
app.add_typer(caching.cache, name="cache")


def main() -> None:
    """Entry point of the ``linnet`` program."""
    try:
        app(prog_name="linnet")
    except LinnetError as error:
        print(f"linnet: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("linnet: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output is gone (`linnet inspect | head`); Python would complain again while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
