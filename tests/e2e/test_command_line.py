# SPDX-License-Identifier: Apache-2.0
"""The commands as a person meets them: what they print, how they refuse, what they leave behind."""

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_llama import write_tiny_llama

COMMANDS = ("compress", "eval", "generate", "chat", "serve", "inspect", "env", "demo", "cache")


def linnet(*arguments: str, stdin: str | None = None, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run the program as its own process, without colours and 100 columns wide."""
    environment = {"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "100", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "linnet.cli.main", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, input=stdin, env=environment | settings, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_with_examples(command: str) -> None:
    result = linnet(command, "--help")
    assert result.returncode == 0
    assert "<" not in result.stdout.replace("<=", "")  # TEXT, N, PATH: no types of a programming language
    assert re.search(rf"Examples\s.*linnet {command} ", result.stdout, re.DOTALL)


def test_generate_prints_prompt_and_text_and_keeps_facts_off_the_output(model: Path) -> None:
    result = linnet("generate", str(model), "Hello", "--max-tokens", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Hello")
    assert re.search(r"\d+ prompt tokens, [1-5] generated", result.stderr)
    again = linnet("generate", str(model), "Hello", "--max-tokens", "5", "--no-stats")
    assert (again.stdout, again.stderr) == (result.stdout, "")
    refused = linnet("generate", str(model), "Hello", "--max-tokens", "900000")
    assert refused.returncode != 0
    assert refused.stdout == ""  # a refusal stands alone


def test_generate_follows_what_the_checkpoint_recommends(model: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = linnet("generate", str(model), "the cat", "--no-stats", *arguments)
        assert result.returncode == 0, result.stderr
        return str(result.stdout)

    other = tmp_path / "generation_config.json"
    other.write_text('{"temperature": 0.9, "top_k": 5, "max_new_tokens": 9}')
    config = ("--generation-config", str(tmp_path))
    asked = ("--temperature", "0.9", "--top-k", "5", "--max-tokens", "9")
    greedy = run("--max-tokens", "9")
    assert run(*config) == run(*asked) != greedy
    assert run(*config, "--temperature", "0") == greedy
    assert run("--top-k", "5", "--max-tokens", "9") == run("--temperature", "1", "--top-k", "5", "--max-tokens", "9")
    other.write_text('{"temperature": -1}')
    broken = linnet("generate", str(model), "the cat", *config)
    assert (broken.returncode, broken.stdout) == (3, "")
    assert (
        "/generation_config.json: temperature is -1; accepted is a number from 0 to 100; --generation-config none"
        in broken.stderr
    )


def test_habitual_spellings_are_taken(model: Path) -> None:
    plain = linnet("generate", str(model), "the cat", "--max-tokens", "4", "--kv-cache", "int8", "--no-stats")
    assert plain.returncode == 0, plain.stderr
    tail = ("-n", "4", "--kv-cache-dtype", "int8", "--no-stats")
    for arguments in (
        ("-m", str(model), "-p", "the cat"),
        (str(model), "--prompt=the cat"),
        (f"--model={model}", "the cat"),
    ):
        assert linnet("generate", *arguments, *tail).stdout == plain.stdout
    assert linnet("inspect", "-m", str(model)).stdout == linnet("inspect", str(model)).stdout
    shown = linnet("--version")
    assert re.fullmatch(r"linnet \d+\.\d+\.\d+\S*\n", shown.stdout)
    assert linnet("-v").stdout == shown.stdout


def test_options_come_from_the_environment_too(model: Path) -> None:
    result = linnet("inspect", str(model), LINNET_INSPECT_SEQUENCES="3", LINNET_INSPECT_AS_JSON="1")
    assert json.loads(result.stdout)["predicted_memory"]["sequences"] == 3


def test_inspect_counts_every_byte(model: Path) -> None:
    facts = json.loads(linnet("inspect", str(model), "--json").stdout)
    assert facts["checkpoint_bytes"] < (model / "model.safetensors").stat().st_size
    assert facts["parameters"] > 0


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["generate", "no/such/model", "x"], 3, "no/such/model"),
        (["generate", "MODEL", "x", "--temperature", "-1"], 2, "temperature"),
        (["generate", "MODEL", "x", "--backend", "gpu9"], 2, "gpu9.*accepted|accepted.*gpu9|reference"),
        (["generate", "MODEL", "x", "--isa", "mmx"], 2, "mmx.*accepted"),
        (["generate", "MODEL", "x", "--kv-cache", "int5"], 2, "int5.*accepted: auto"),
        (["generate", "MODEL", "x", "--max-model-len", "lots"], 2, "4096 or 32k"),
        (["generate", "MODEL", "x", "--temperatur", "1"], 2, "--temperature"),
        (["eval", "MODEL", "--text", "missing.txt"], 2, "missing.txt"),
        (["eval", "MODEL", "--questions", "missing.jsonl"], 2, "missing.jsonl"),
        (["inspect", "MODEL", "--context", "1m"], 2, "1000000"),
        (["compress", "MODEL", "-o", "x", "--recipe", "r.yaml", "--seed", "1"], 2, "--recipe.*--seed would"),
    ],
)
def test_mistakes_end_in_one_sentence(model: Path, arguments: list[str], status: int, sentence: str) -> None:
    result = linnet(*[str(model) if argument == "MODEL" else argument for argument in arguments], HF_HUB_OFFLINE="1")
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(sentence, " ".join(result.stderr.split())), result.stderr
    assert result.stdout in ("", "x")


def test_a_text_alone_can_be_measured(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    name = tmp_path / "out" / "report"
    result = linnet(
        *("eval", str(model), "--text", str(text), "--questions", "none", "--report", str(name), "--context", "64"),
        *("--kv-cache", "int8"),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(name.with_name("report.json").read_text(encoding="utf-8"))
    assert report["text"]["name"] == "text.txt"
    assert report["perplexity"]["candidate"]["value"] > 1
    assert "/fast-kv_int8/" in report["candidate"]["numerics"]
    assert str(tmp_path) not in json.dumps(report)


def test_compress_evaluate_certify(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compressing needs torch")
    text, out = tmp_path / "text.txt", tmp_path / "small"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200, encoding="utf-8")
    compressed = linnet("compress", str(model), "-o", str(out), "--scheme", "W8A16", "--algorithm", "rtn")
    assert compressed.returncode == 0, compressed.stderr
    assert "bits per weight" in compressed.stdout
    refused = linnet("compress", str(model), "-o", str(out), "--scheme", "W4A16-channel", "--algorithm", "rtn")
    assert refused.returncode != 0
    assert "overwrit" in refused.stderr
    measured = linnet(
        "eval", str(out), "--against", str(model), "--text", str(text), "--questions", "none", "--context", "64"
    )
    assert measured.returncode == 0, measured.stderr
    certificate = json.loads((out / "loss_certificate.json").read_text(encoding="utf-8"))
    assert certificate["divergence"]["mean"]["value"] < 1
    unknown = linnet("compress", str(model), "-o", str(tmp_path / "x"), "--scheme", "W5A16")
    assert unknown.returncode == 2
    assert "W4A16" in unknown.stderr
    assert not (tmp_path / "x").exists()


def test_without_a_text_the_model_writes_its_own(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compressing needs torch")
    out, home = tmp_path / "small", str(tmp_path / "home")
    arguments = ("compress", str(model), "-o", str(out), "--scheme", "W4A16-g16", "--calibration-rows", "2")
    compressed = linnet(*arguments, HOME=home)
    assert compressed.returncode == 0, compressed.stderr
    manifest = json.loads((out / "linnet_manifest.json").read_text(encoding="utf-8"))
    calibration = manifest["record"]["calibration"]
    assert calibration["name"] == "the model's own text (every second row a chat, seed 0)"
    said = f"calibrated on {calibration['name']}: 2 rows of {calibration['length']} tokens"
    assert said in " ".join(compressed.stderr.split())
    assert (
        f"{calibration['name']}: 2 rows of {calibration['length']} tokens, SHA-256 `{calibration['digest']}`"
        in (out / "README.md").read_text()
    )
    told = " ".join(compressed.stderr.split())
    for line in (
        "needs about",
        "as one block has shown",
        "error of each block's output",
        "largest errors of a layer's",
    ):
        assert line in told
    assert f"next: linnet eval {out} --against {model} or linnet serve {out}" in told
    card = (out / "README.md").read_text()
    assert f"linnet compress {model.name} -o small --scheme W4A16-g16 --calibration-rows 2" in card
    assert (
        ("errors.png" in card) == (importlib.util.find_spec("matplotlib") is not None) == (out / "errors.png").exists()
    )
    assert str(tmp_path) not in card
    for arguments, author in ((("--against", str(model)), "original"), ((), "model")):
        name = tmp_path / author
        measured = linnet(
            *(
                "eval",
                str(out),
                *arguments,
                "--questions",
                "none",
                "--context",
                "32",
                "--max-tokens",
                "64",
                "--report",
                str(name),
            ),
            HOME=home,
        )
        assert measured.returncode == 0, measured.stderr
        report = json.loads(name.with_name(f"{author}.json").read_text(encoding="utf-8"))
        # 32 tokens are too few for a chat
        assert report["text"]["name"] == f"the {author}'s own text (no chats, seed 0)"
    # One text to calibrate, one to measure by the original, one by the compressed model: none is another.
    assert len(list((tmp_path / "home" / ".cache" / "linnet" / "texts").iterdir())) == 3


def test_the_cache_is_shown_and_cleared(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "linnet"
    (folder / "tiles").mkdir(parents=True)
    (folder / "verified").mkdir()
    (folder / "verified" / "note").write_text("x" * 10)
    header = {"isa": "portable", "checkpoint": str(tmp_path / "no model")}
    file = folder / "tiles" / "0123-portable.tiles"
    file.write_bytes(json.dumps(header).encode().ljust(5000, b"\n"))
    shown = linnet("cache", HOME=str(tmp_path), COLUMNS="300")
    assert re.search(r"5 kB +.* ago +tiles, portable: .*no model \(gone\)", shown.stdout), shown
    facts = json.loads(linnet("cache", "--json", HOME=str(tmp_path)).stdout)
    assert (facts["bytes"], facts["tiles"][0]["checkpoint_gone"]) == (5010, True)
    with file.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        kept = linnet("cache", "clear", HOME=str(tmp_path))
        assert kept.stdout.startswith(f"kept: {file} is in use"), kept
    assert "5 kB freed" in linnet("cache", "clear", HOME=str(tmp_path)).stdout
    assert not file.exists()
    assert linnet("cache", HOME=str(tmp_path / "nobody")).returncode == 0


def test_the_cache_counts_what_the_killed_left_and_keeps_what_runs(tmp_path: Path) -> None:
    home = tmp_path / "[" / "draft]"  # "[/draft]" closes a style that nobody opened
    folder = home / ".cache" / "linnet"
    killed, writing = folder / "tiles" / "1.partial", folder / "tiles" / "2.partial"
    converting, abandoned = (folder / "tokenizers" / f".converting-{name}" for name in ("now", "long-ago"))
    for place, size in ((killed, 3000), (writing, 100), (converting, 10), (abandoned, 7000)):
        place.mkdir(parents=True)
        (place / "content").write_bytes(bytes(size))
    os.utime(abandoned, (0, 0))
    header = json.dumps({"format_version": 1, "isa": "portable", "checkpoint": str(home)})
    (folder / "tiles" / "0.tiles").write_bytes(header.encode().ljust(5000, b"\n"))
    shown = linnet("cache", HOME=str(home), COLUMNS="300")
    assert shown.returncode == 0, shown
    assert str(folder) in shown.stdout
    assert f"tiles, portable: {home} (of an older Linnet)" in shown.stdout
    facts = json.loads(linnet("cache", "--json", HOME=str(home)).stdout)
    assert facts["bytes"] == 5000 + 3000 + 100 + 10 + 7000
    assert (facts["tiles"][0]["checkpoint_gone"], facts["tiles"][0]["older_format"]) == (False, True)
    with (writing / "lock").open("w") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        cleared = linnet("cache", "clear", HOME=str(home), COLUMNS="300").stdout
    assert f"kept: {writing}: another process is writing it" in cleared
    assert f"kept: {converting}: a conversion may be running" in cleared
    assert "15 kB freed" in cleared
    assert (writing / "content").exists()
    assert (converting / "content").exists()
    assert not killed.exists()
    assert not abandoned.exists()
