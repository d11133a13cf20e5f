# SPDX-License-Identifier: Apache-2.0
"""``linnet chat``: a conversation on the terminal, or one question and its answer, with a model or a server."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linnet.cli import options
from linnet.cli.address import Address, is_address
from linnet.cli.declaring import Given, offers
from linnet.cli.serve_options import KEY_VARIABLE, read_keys
from linnet.errors import ConfigError

if TYPE_CHECKING:
    from linnet.cli.partners import Partner


@offers(asked=(options.max_tokens("Longest answer.", 4096), *options.SAMPLING), opening=options.OPENING)
def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="Model directory, GGUF file, Hugging Face id, or the http address of a server; -m or --model too.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="One question to answer (-p or --prompt too); without it, a conversation."),
    ] = None,
    *,
    system: Annotated[str | None, options.option(help="What the model is told it is.", show_default=False)] = None,
    asked: Given,
    seed: Annotated[int | None, options.option(help="Makes sampled answers repeat.", show_default="none")] = None,
    served_model_name: Annotated[
        str | None, options.option(help="Of a server: the model to talk to.", show_default="the only one it has")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        options.option(
            help=f"Of a server: file that begins with its API key; else {KEY_VARIABLE}.", show_default=False
        ),
    ] = None,
    opening: Given,
) -> None:
    """Talk with a model, compressed or not, here or on any server of OpenAI's API.

    Ctrl-C ends an answer; /help lists what else there is. Without a terminal every line of the input is a message.

    [dim]Examples[/]

      linnet chat ./my-model
      linnet chat ./my-model "What is the capital of France?"
      linnet chat ./my-model --system "You answer in one sentence." --temperature 0.7
      linnet chat http://localhost:8000
    """
    from rich.markup import escape

    from linnet.cli.terminal import notices

    interactive = sys.stdin.isatty() and sys.stdout.isatty() and prompt is None

    def note(text: str) -> None:
        notices().print(f"[dim]{escape(text)}[/]")

    def talk(partner: "Partner", greeting: str) -> None:
        _talk(partner, prompt, system, note, interactive, greeting)

    if is_address(model):
        _with_server(model, served_model_name, api_key_file, asked, seed, opening, talk)
        return
    if served_model_name is not None or api_key_file is not None:
        raise ConfigError(f"{model} is no server: --served-model-name and --api-key-file belong to an http address")
    _with_model(model, asked, seed, opening, talk)


Talk = Callable[["Partner", str], None]


def _with_model(model: str, asked: Given, seed: int | None, opening: Given, talk: Talk) -> None:
    from linnet.api import CHAT_MAX_TOKENS, read_sampling_defaults
    from linnet.cli.partners import LocalPartner
    from linnet.formats import resolve_model

    directory = resolve_model(model, opening["revision"])
    recommended = read_sampling_defaults(directory, opening["generation_config"])
    parameters = options.sampling(recommended, asked, seed=seed)
    open_model = options.opener(opening, max_sequences=1)
    with open_model(directory, opening["policy"], opening["kv_cache"]) as llm:
        if not llm.tokenizer.templates.names:
            raise ConfigError(
                f"{model} has no chat template: it is a base model, which continues texts; linnet generate {model} "
                '"Once upon a time" does that'
            )
        sampled = f"; {recommended}" if str(recommended) else ""
        partner = LocalPartner(llm, parameters, recommended.max_tokens or CHAT_MAX_TOKENS)
        talk(partner, f"{llm.name}, context {llm.max_model_len:,} tokens{sampled}")


def _with_server(
    url: str, name: str | None, key_file: Path | None, asked: Given, seed: int | None, opening: Given, talk: Talk
) -> None:
    from linnet.cli.remote import RemotePartner, chosen

    if opening.chosen():
        raise ConfigError(f"{opening.chosen()[0]} says how a model is opened here; {url} has opened its own")
    key = os.environ.get(KEY_VARIABLE, "").strip() if key_file is None else read_keys(key_file)[0]
    address = Address.of(url, key or None)
    wanted: dict[str, Any] = {setting.name: asked[setting.name] for setting in options.SAMPLING}
    wanted |= {"max_tokens": asked["max_tokens"], "seed": seed}
    model = chosen(address, name)
    talk(RemotePartner(address, model, {key: value for key, value in wanted.items() if value is not None}),
         f"{model} on {address}")  # fmt: skip


def _talk(
    partner: "Partner",
    prompt: str | None,
    system: str | None,
    note: Callable[[str], None],
    interactive: bool,
    greeting: str,
) -> None:
    from linnet.cli.conversation import Conversation, converse
    from linnet.cli.standard_input import standard_input

    def say(text: str) -> None:
        print(text, end="", flush=True)

    conversation = Conversation(partner, say, note, system)
    if prompt is not None:
        conversation.ask("".join(standard_input()) if prompt == "-" else prompt)
        if conversation.interrupted:
            raise KeyboardInterrupt
        return
    if interactive:
        note(f"{greeting}. /help lists commands, /quit leaves.")
    converse(conversation, interactive, note)
