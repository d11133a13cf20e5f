# SPDX-License-Identifier: Apache-2.0
"""``linnet eval``: what exactly got worse, with intervals."""

import os
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from linnet.cli import options
from linnet.cli.declaring import Given, offers
from linnet.cli.numbers import parse_count
from linnet.errors import ConfigError, UnsupportedError, unknown_choice
from linnet.extras import install_command
from linnet.settings import BackendSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from linnet.api import LLM
    from linnet.cli.terminal import Stages
    from linnet.evals import EvaluationText, QuestionSet, Report, Text
    from linnet.text import OwnText


MODELS = tuple(
    one for one in options.OPENING if one not in (options.GENERATION_CONFIG, options.MAX_MODEL_LEN, options.QUANTIZE)
)
"""How both models are opened."""


@offers(opening=MODELS)
def evaluate(
    model: options.Model,
    *,
    against: Annotated[
        str | None, options.option(help="The original to compare with (directory or hub id).", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, options.option(help="UTF-8 text to read (.xz too).", show_default="the original writes its own")
    ] = None,
    questions: Annotated[
        str | None,
        options.option(
            help="'general', 'demo', a .jsonl question set, or 'none'.",
            show_default="general; demo for the bundled model's kin",
        ),
    ] = None,
    max_tokens: Annotated[
        int, options.option(parser=parse_count, metavar="TOKENS", help="Tokens of the text to score.")
    ] = 16384,
    context: Annotated[
        int | None,
        options.option(
            parser=parse_count, metavar="TOKENS", help="Window length.", show_default="512, or the model's context"
        ),
    ] = None,
    stride: Annotated[
        int | None,
        options.option(parser=parse_count, metavar="TOKENS", help="How far windows advance.", show_default="half"),
    ] = None,
    per_ability: Annotated[
        int | None,
        options.option(metavar="N", min=1, help="Use only so many questions an ability.", show_default="all"),
    ] = None,
    report: Annotated[
        Path | None, options.option(help="Write NAME.json, NAME.md and NAME.png.", metavar="NAME", show_default=False)
    ] = None,
    certify: Annotated[
        bool, options.option("--certificate/--no-certificate", help="Store the loss certificate in the checkpoint.")
    ] = True,
    opening: Given,
) -> None:
    """Measure perplexity, KL divergence and abilities, alone or against the original.

    Abilities are compared question by question (McNemar's exact test, Holm-adjusted); text loss has bootstrap
    intervals; KL comes with a noise floor, what rounding alone changes.

    [dim]Examples[/]

      linnet eval ./my-model-w4 --against ./my-model
      linnet eval ./my-model-w4 --against ./my-model --text notes.txt --questions none --report out/w4
      linnet eval ./my-model --against ./my-model --kv-cache int8
    """
    from linnet import evals
    from linnet.api import LLM
    from linnet.cli.certifying import store_certificate
    from linnet.cli.terminal import notices, stages
    from linnet.formats import resolve_model

    path = resolve_model(model, opening["revision"])
    reference = None if against is None else resolve_model(against)
    if report is not None:
        check_report(report, [path] if reference is None else [path, reference])
        _prepare_folder(report)
    question_set = _questions(questions, path, per_ability)
    open_model, kv_cache = options.opener(opening), opening["kv_cache"]
    open_writer = partial(LLM, backend=opening.make(BackendSettings))
    with stages() as progress:
        result = evals.evaluate(
            path,
            reference,
            open_model,
            policy=opening["policy"],
            kv_cache=kv_cache,
            text=_text(text, path, reference, progress, open_writer),
            questions=question_set,
            context=context,
            stride=stride,
            max_tokens=max_tokens,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            progress=progress.update,
        )
    _show(result)
    if report is not None:
        written = write_report(result, report)
        notices().print(f"[dim]wrote {', '.join(str(path) for path in written)}[/]")
    if kv_cache != "auto":
        notices().print("[dim]no certificate stored: it would speak of the KV cache, not of the checkpoint[/]")
    elif certify and result.reference is not None and (path / "linnet_manifest.json").exists():
        notices().print(f"[dim]{store_certificate(result, path)}[/]")


def heldout_text() -> "EvaluationText":
    """The bundled world's held-out documents."""
    from linnet import demo, evals

    documents = demo.heldout_file().read_text(encoding="utf-8").split(demo.TEXT_SEPARATOR)
    return evals.EvaluationText("the bundled world's held-out documents", tuple(documents))


def _prepare_folder(report: Path) -> None:
    """Make the report's folder before anything is measured: an hour later is too late to hear that it cannot be."""
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(report.parent, os.W_OK)
    except OSError as error:
        raise ConfigError(f"--report {report} cannot be written: {error.strerror}") from None
    if not writable:
        raise ConfigError(f"--report {report} cannot be written: nothing may be written in {report.parent}")


def _text(
    path: Path | None, model: Path, reference: Path | None, progress: "Stages", open_model: "Callable[..., LLM]"
) -> "Text":
    """The user's text; for the bundled model and its kin the held-out town; else what the original writes itself."""
    from linnet import demo, evals
    from linnet.cli.own_text import write_text
    from linnet.formats import Checkpoint
    from linnet.text.files import read_corpus

    if path is not None:
        return evals.EvaluationText(path.name, (read_corpus(path),))
    author, directory = ("model", model) if reference is None else ("original", reference)
    with Checkpoint.open(directory, verify=False) as checkpoint:
        if demo.is_bundled_model(checkpoint):
            return heldout_text()

    def write(rows: int, length: int) -> "OwnText":
        return write_text(
            directory, rows, length, 0, purpose="evaluation", option="--text", progress=progress, open_model=open_model
        )

    return evals.OwnEvaluationText(author, write)


def _questions(choice: str | None, model: Path, per_ability: int | None) -> "QuestionSet | None":
    """General questions by default; models that share the demo model's tokenizer know only its world."""
    from linnet import demo, evals

    if choice == "none":
        return None
    if choice is None:
        ours, theirs = demo.model_directory() / "tokenizer.json", model / "tokenizer.json"
        choice = "demo" if theirs.exists() and theirs.read_bytes() == ours.read_bytes() else "general"
    if choice == "general":
        return evals.subset(evals.general_questions(), per_ability)
    path = demo.questions_file() if choice == "demo" else Path(choice)
    if not path.exists() and not path.suffix:  # a word, not a file
        raise unknown_choice("questions", choice, ("general", "demo", "none", "a .jsonl file"))
    return evals.subset(evals.read_questions(path), per_ability)


def _show(result: "Report") -> None:
    from rich.markdown import Markdown

    from linnet.cli.terminal import output
    from linnet.evals import markdown

    console = output()
    text = markdown(result)
    console.print(Markdown(text) if console.is_terminal else text, markup=False)


def report_files(name: Path) -> list[Path]:
    """NAME.json, NAME.md and NAME.png."""
    return [name.with_name(name.name + suffix) for suffix in (".json", ".md", ".png")]


def check_report(name: Path, models: "list[Path]") -> None:
    """Before anything is measured: CheckpointError unless a report can be written without harm.

    Not into a model's directory, over nothing but an earlier report of Linnet's, and with what draws its picture
    (UnsupportedError).
    """
    from linnet.errors import CheckpointError
    from linnet.evals import read_report

    if find_spec("matplotlib") is None:
        raise UnsupportedError(f"--report draws a picture, which needs matplotlib: {install_command('report')}")
    real = Path(os.path.realpath(name.parent))
    for model in models:
        if Path(os.path.realpath(model)) in (real, *real.parents):
            raise CheckpointError(f"--report {name}: lies in the model's directory {model}; give a name outside it")
    present = [path for path in report_files(name) if os.path.lexists(path)]
    if not present:
        return
    try:
        read_report(report_files(name)[0])
        strange = [path for path in present if path.is_symlink() or not path.is_file()]
    except CheckpointError:
        strange = present
    if strange:
        raise CheckpointError(
            f"--report {name}: {strange[0]} is there and not of an earlier report; it is kept, give another name"
        )


def write_report(result: "Report", name: Path) -> list[Path]:
    """Write NAME.json, NAME.md and NAME.png; returns what was written."""
    from linnet import evals
    from linnet.cli.certifying import replace_file
    from linnet.evals.figure import draw

    name.parent.mkdir(parents=True, exist_ok=True)
    written = report_files(name)
    replace_file(written[0], evals.to_json(result))
    replace_file(written[1], evals.markdown(result).encode())
    draw(result, written[2])
    return written
