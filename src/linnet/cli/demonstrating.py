# SPDX-License-Identifier: Apache-2.0
"""``linnet demo``: the whole of Linnet in a minute: compress, evaluate, serve, and one table of what it cost."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

from linnet.cli import options
from linnet.cli.declaring import Given, offers
from linnet.cli.evaluating import heldout_text
from linnet.cli.numbers import human_bytes, human_duration
from linnet.errors import CheckpointError, LinnetError, UnsupportedError
from linnet.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from linnet.api import LLM
    from linnet.cli.terminal import Stages
    from linnet.evals import Baseline, EvaluationText, QuestionSet, Report

QUESTION = "My name is Bram. I lost my drum. What did I lose?"
SPEED_TOKENS = 128
TEXT_TOKENS = 8192
CONTEXT = 512
START_S, STOP_S = 30.0, 30.0
"""How long the demo's server may take to start and to stop."""


@dataclass(frozen=True)
class Candidate:
    """One compressed model of the demo."""

    title: str
    scheme: str
    algorithm: str

    @property
    def directory(self) -> str:
        return f"{self.scheme}-{self.algorithm}"


CANDIDATES = (
    Candidate("W8A16", "W8A16", "rtn"),
    Candidate("W4 RTN", "W4A16-g32", "rtn"),
    Candidate("W4 GPTQ", "W4A16-g32", "gptq"),
    Candidate("W2 RTN", "W2A16-g32", "rtn"),
)
SERVED = CANDIDATES[2]


@offers(opening=(options.THREADS, options.ISA))
def demo(
    *,
    out: Annotated[Path, options.option("--output", "-o", help="Where compressed models and reports go.")] = Path(
        "linnet-demo"
    ),
    per_ability: Annotated[
        int | None,
        options.option(metavar="N", min=1, help="Ask only so many questions an ability.", show_default="all"),
    ] = None,
    opening: Given,
) -> None:
    """Compress the bundled model four ways, measure each against the original, serve one and ask it a question.

    Ends with one table: bytes, perplexity, KL, ability scores with the verdict of a paired test, tokens per second.

    [dim]Examples[/]

      linnet demo
      linnet demo --per-ability 20 -o /tmp/linnet-demo
    """
    from linnet import demo as bundled
    from linnet import evals
    from linnet.cli.comparing import Row, table
    from linnet.cli.evaluating import check_report
    from linnet.cli.terminal import output, stages
    from linnet.formats.durable import os_errors
    from linnet.formats.target import real_target

    started = time.monotonic()
    console = output()
    original = bundled.model_directory()
    for candidate in CANDIDATES:
        check_report(out / f"{candidate.directory}-report", [original])
        with os_errors(out):
            _check_replaceable(real_target(out / candidate.directory))
    out.mkdir(parents=True, exist_ok=True)
    open_model = options.opener(opening, kv_bytes=64 * 2**20)
    questions = evals.subset(evals.read_questions(bundled.questions_file()), per_ability)
    text = heldout_text()
    rows: list[Row] = []
    with stages() as progress:
        for candidate in CANDIDATES:
            progress.prefixed(f"compress {candidate.title}")
            _compress(original, out / candidate.directory, candidate, progress)
        progress.prefixed("measure original")
        baseline, speed = _baseline(original, open_model, text, questions, progress)
        for candidate in CANDIDATES:
            progress.prefixed(f"measure {candidate.title}")
            report = evals.evaluate(
                out / candidate.directory,
                original,
                open_model,
                policy="fast",
                text=text,
                questions=questions,
                context=CONTEXT,
                stride=CONTEXT // 2,
                max_tokens=TEXT_TOKENS,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                progress=progress.update,
                baseline=baseline,
            )
            _publish(report, out / candidate.directory, out / f"{candidate.directory}-report")
            with open_model(out / candidate.directory, "fast") as llm:
                rows.append(Row(candidate.title, report, _decode_speed(llm)))
    answer = _ask_server(out / SERVED.directory, opening["threads"])
    console.print(table(rows, speed))
    console.print(f"[bold]Served[/] {SERVED.directory} over HTTP. [cyan]{QUESTION}[/] → [green]{answer.strip()}[/]")
    sizes = f"{human_bytes(rows[0].original_bytes)} → {human_bytes(rows[2].report.candidate.bytes)}"
    console.print(
        f"[dim]{sizes} with GPTQ; models, certificates and reports are in {out}/; "
        f"all of it took {human_duration(time.monotonic() - started)}.[/]"
    )


def _check_replaceable(target: Path) -> None:
    """CheckpointError unless there is nothing at ``target``, or what an earlier demo left there."""
    from linnet.demo import is_bundled_model
    from linnet.formats import Checkpoint
    from linnet.formats.target import check_replaceable

    if not check_replaceable(target, overwrite=True):
        return
    with Checkpoint.open(target, verify=False) as checkpoint:
        if not is_bundled_model(checkpoint):
            raise CheckpointError(
                f"{target}: made of another model than the demo's, so the demo does not replace it; choose another "
                "output with --output"
            )


def _compress(original: Path, target: Path, candidate: Candidate, progress: "Stages") -> None:
    try:
        from linnet import compress as room
    except ImportError as error:
        command = install_command("compress", "report")
        raise UnsupportedError(f"the demo compresses and so needs PyTorch: {command}") from error
    from linnet.cli.compressing import observer

    recipe = room.make_recipe(candidate.scheme, candidate.algorithm)
    room.compress(original, target, recipe, observer=observer(progress), restart=True, overwrite=True)


def _baseline(
    original: Path,
    open_model: "Callable[[Path, str], LLM]",
    text: "EvaluationText",
    questions: "QuestionSet",
    progress: "Stages",
) -> "tuple[Baseline, float]":
    """What is known of the original once, for all candidates, and its decoding speed."""
    from linnet import evals

    with open_model(original, "fast") as reference, open_model(original, "exact") as exact:
        cut = text.cut(reference, CONTEXT, CONTEXT // 2, TEXT_TOKENS)
        return evals.measure_baseline(reference, exact, cut, questions, progress.update), _decode_speed(reference)


def _decode_speed(llm: "LLM") -> float:
    """Tokens per second of one greedy answer of ``SPEED_TOKENS`` tokens, the faster of two."""
    from linnet.api import SamplingParams

    prompt = llm.tokenizer.encode("Once upon a time")
    parameters = SamplingParams(temperature=0.0, max_tokens=SPEED_TOKENS, ignore_eos=True)
    best = 0.0
    for _ in range(2):
        started = time.perf_counter()
        llm.generate([prompt], parameters)
        best = max(best, SPEED_TOKENS / (time.perf_counter() - started))
    return best


def _publish(report: "Report", directory: Path, name: Path) -> None:
    from linnet.cli.certifying import store_certificate
    from linnet.cli.evaluating import write_report

    store_certificate(report, directory)
    write_report(report, name)


def _ask_server(model: Path, threads: int | None) -> str:
    """Start ``linnet serve`` as a user would, put one question through HTTP, stop it again."""
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # -P: no file of the folder we were started in may stand in for a module.
    command = [sys.executable, "-P", "-m", "linnet.cli.main", "serve", str(model), "--port", str(port)]
    command += ["--threads", str(threads)] if threads else []
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads would stop a talkative server
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=dict(os.environ))
        try:
            _wait_until_healthy(server, base, said)
            body = {
                "model": model.name,
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": 48,
                "temperature": 0,
            }
            request = urllib.request.Request(
                f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError) as error:
            raise LinnetError(f"the demo's server did not answer: {error}") from error
        finally:
            _stop(server)


def _stop(server: "subprocess.Popen[bytes]", patience_s: float = STOP_S) -> None:
    """End the server: gently, and by force if it does not go."""
    server.terminate()
    try:
        server.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait_until_healthy(
    server: "subprocess.Popen[bytes]", base: str, said: IO[bytes], timeout_s: float = START_S
) -> None:
    import urllib.request

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            said.seek(0)
            message = said.read().decode(errors="replace").strip()
            raise LinnetError(f"the demo's server ended with status {server.returncode}: {message[-400:]}")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise LinnetError(f"the demo's server did not become healthy within {timeout_s:.0f} s")
