# SPDX-License-Identifier: Apache-2.0
"""The walk: what it writes, what the next block saw, what resumes, what is refused."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from walking import FEW, StopAt, hashes, value_of

from linnet.compress import CancelToken, Interrupted, ProgressEvent, check, compress, job, make_recipe
from linnet.compress.algorithms.gptq import Gptq, GptqOptions
from linnet.compress.rows import RowStore
from linnet.compress.statistic import Hessian
from linnet.errors import CheckpointError, ConfigError, UnsupportedError
from linnet.formats import Checkpoint
from linnet.formats.carried import carried_files
from linnet.formats.partial import PartialOutput
from linnet.models.load import load_model
from linnet.schemes.packed_weight import PackedWeight, quantize_weight
from linnet.schemes.presets import parse_scheme
from linnet.text import ChatTemplates

RECIPE = make_recipe("W4A16-g16", **FEW)


def test_rounding_is_the_codec_and_everything_else_is_copied(tiny_model, tmp_path):
    result = compress(tiny_model, tmp_path / "out", make_recipe("W4A16-g16", "rtn"))
    dense, small = Checkpoint.open(tiny_model), Checkpoint.open(result.path, verify=True)
    scheme = parse_scheme("W4A16-g16").linear
    for module, layer in result.layers.items():
        expected = quantize_weight(dense.tensor(f"{module}.weight"), scheme)
        stored = small.linear(module)
        assert isinstance(stored, PackedWeight)
        assert all((stored.arrays[name] == expected.arrays[name]).all() for name in expected.arrays)
        assert layer["algorithm"] == "rtn"
    kept = [name for name in dense.names() if name.removesuffix(".weight") not in result.layers]
    assert len(kept) == 7
    assert all((small.tensor(name).view(np.uint16) == dense.tensor(name).view(np.uint16)).all() for name in kept)
    assert sorted(path.name for path in result.path.iterdir() if path.suffix == ".json") == [
        "config.json", "generation_config.json", "linnet_manifest.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    card = (result.path / "README.md").read_text()
    assert f"| bytes | {small.nbytes:,}" in card
    assert str(tmp_path) not in card
    assert result.output_bytes == small.nbytes < result.source_bytes == dense.nbytes
    assert result.bits_per_weight == pytest.approx(8 * small.nbytes / load_model(tiny_model).parameters)


def test_each_block_is_fitted_on_what_the_compressed_blocks_before_it_produce(tiny_model, tmp_path, text):
    result = compress(tiny_model, tmp_path / "out", RECIPE, calibration_text=text)
    job = check(tiny_model, RECIPE, text)
    source = load_model(tiny_model)
    info = next(info for info in source.linears() if info.module == "model.layers.1.self_attn.q_proj")
    # layer 1's attention reads layer 0 compressed; its own norm is dense: in the published model both hold
    hessian = Hessian(info.shape[1])
    for start in range(0, 6, 2):
        hessian.add(value_of(result.path, info.tap, job.rows.token_ids[start : start + 2]))
    weight = torch.from_numpy(Checkpoint.open(tiny_model).tensor(info.tensor).astype(np.float32))
    fit = Gptq(GptqOptions()).fit("m", weight, parse_scheme("W4A16-g16").linear, {"hessian": hessian}, lambda _: None)
    stored = Checkpoint.open(result.path).linear(info.module)
    assert (fit.packed.codes() == stored.codes()).mean() > 0.999
    assert fit.output_error == pytest.approx(result.layers[info.module]["output_error"], rel=1e-3)


def test_statistics_are_shared_by_the_linears_of_a_tap(tiny_model, tmp_path, text, monkeypatch):
    made, added = [], []
    start, add = Hessian.__init__, Hessian.add
    monkeypatch.setattr(Hessian, "__init__", lambda self, width: (made.append(width), start(self, width))[1])
    monkeypatch.setattr(Hessian, "add", lambda self, x: (added.append(len(x)), add(self, x))[1])
    compress(tiny_model, tmp_path / "out", RECIPE, calibration_text=text)
    assert made == [32, 32, 32, 64] * 2  # q/k/v, o, gate/up, down
    assert sum(added) == 6 * 64 * 8


@pytest.mark.parametrize("scheme", ["W4A16-g16-head8", "W8A8", "NF4-g16", "FP8", "W4A16-g16-head4-asym"])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_and_embeddings(tiny_model, tmp_path, text, scheme, tied):
    model = tiny_model
    if tied:
        model = shutil.copytree(tiny_model, tmp_path / "tied")
        tensors = load_file(model / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()  # stored twice, as some files do
        save_file(tensors, model / "model.safetensors")
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    recipe = make_recipe(scheme, calibration_rows=4, calibration_length=64)
    result = compress(model, tmp_path / "out", recipe, calibration_text=text)
    reloaded = load_model(result.path)
    assert result.output_bytes == reloaded.checkpoint.nbytes
    assert f"| bytes | {reloaded.checkpoint.nbytes:,}" in (result.path / "README.md").read_text()
    head = "head" in scheme
    assert ("model.embed_tokens" in result.layers) == head
    assert ("lm_head" in result.layers) == (head and not tied)
    assert ("lm_head.weight" in reloaded.checkpoint) == (not head and not tied)
    ids = np.arange(40, dtype=np.int32)[None]
    dense, small = value_of(model, "logits", ids), value_of(result.path, "logits", ids)
    assert torch.nn.functional.cosine_similarity(dense, small).mean() > 0.7  # a random model forgives nothing


def test_two_runs_are_bit_identical(tiny_model, tmp_path, text):
    first = compress(tiny_model, tmp_path / "a", RECIPE, calibration_text=text)
    second = compress(tiny_model, tmp_path / "b", RECIPE, calibration_text=text)
    assert hashes(first.path) == hashes(second.path)
    assert first.manifest["digest"] == second.manifest["digest"]


def test_every_stop_resumes_to_the_same_bytes(tiny_model, tmp_path, text):
    expected = hashes(compress(tiny_model, tmp_path / "whole", RECIPE, calibration_text=text).path)
    target, stops = tmp_path / "out", 0
    while True:
        token = CancelToken()
        try:
            stop = StopAt(token, 25)  # enough events to finish the longest segment
            result = compress(tiny_model, target, RECIPE, calibration_text=text, cancel=token, observer=stop)
            break
        except Interrupted:
            assert not target.exists()
            stops += 1
            assert stops < 10
    assert stops >= 2
    assert result.resumed
    assert hashes(result.path) == expected
    assert not list(tmp_path.glob(".out*"))


class Crash(BaseException):
    """Nobody catches it: the closest thing to a crash that leaves the test alive."""


def test_a_crash_at_any_durable_step_resumes_to_the_same_bytes(tiny_model, tmp_path, text, monkeypatch):
    """Steps are the calls that make something last: fsync, rename. LINNET_KILL_TRIALS of them are tried."""
    steps = [0, -1]

    def counted(function):
        def step(*arguments):
            steps[0] += 1
            if steps[0] == steps[1]:
                raise Crash
            return function(*arguments)

        return step

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    recipe = make_recipe("W4A16-g16", calibration_rows=2, calibration_length=32)
    expected = hashes(compress(tiny_model, tmp_path / "whole", recipe, calibration_text=text).path)
    total, trials = steps[0], int(os.environ.get("LINNET_KILL_TRIALS", "5"))
    assert total > 20
    for crash_at in sorted(random.sample(range(1, total + 1), min(trials, total))):
        target = tmp_path / f"out{crash_at}"
        steps[:] = [0, crash_at]
        with pytest.raises(Crash):
            compress(tiny_model, target, recipe, calibration_text=text)
        steps[1] = -1
        if target.exists():
            assert hashes(target) == expected
        assert hashes(compress(tiny_model, target, recipe, calibration_text=text).path) == expected, crash_at
        assert not list(tmp_path.glob(".out*"))


def interrupted(tiny_model: Path, target: Path, text: str, after: int = 9) -> None:
    token = CancelToken()
    with pytest.raises(Interrupted):
        compress(tiny_model, target, RECIPE, calibration_text=text, cancel=token, observer=StopAt(token, after))


def test_another_run_is_refused_in_words_and_restart_forgets(tiny_model, tmp_path, text, monkeypatch):
    target = tmp_path / "out"
    interrupted(tiny_model, target, text)
    with pytest.raises(ConfigError, match=r"differs from this one: .*recipe was .* start afresh"):
        compress(tiny_model, target, make_recipe("W8A16", "rtn"))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ConfigError, match=rf"threads \(OMP_NUM_THREADS.*\) was {threads}, is {threads + 1}"):
            compress(tiny_model, target, RECIPE, calibration_text=text)
    finally:
        torch.set_num_threads(threads)
    with monkeypatch.context() as patch:
        patch.setattr(job, "sources_digest", lambda: "of other code")
        with pytest.raises(ConfigError, match=r"linnet sources was [0-9a-f]{40}, is of other code"):
            compress(tiny_model, target, RECIPE, calibration_text=text)
    with pytest.raises(ConfigError, match="calibration was"):
        compress(tiny_model, target, RECIPE, calibration_text=text.replace("cat", "dog"))
    result = compress(tiny_model, target, make_recipe("W8A16", "rtn"), restart=True)
    assert not result.resumed
    assert not list(tmp_path.glob(".out*"))


def test_damaged_resume_rows_are_noticed(tiny_model, tmp_path, text):
    target = tmp_path / "out"
    interrupted(tiny_model, target, text, after=20)
    rows = next((tmp_path / ".out.linnet-partial" / "scratch").glob("rows-*.f32"))
    data = bytearray(rows.read_bytes())
    data[100] ^= 1
    rows.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged; start afresh with --restart .*\)$"):
        compress(tiny_model, target, RECIPE, calibration_text=text)
    rows.unlink()
    with pytest.raises(CheckpointError, match=r"\.f32: cannot be read: No such file .*; start afresh with --restart"):
        compress(tiny_model, target, RECIPE, calibration_text=text)
    assert compress(tiny_model, target, RECIPE, calibration_text=text, restart=True).path == target


def test_rows_that_cannot_be_read_say_so(tmp_path):
    store = RowStore(tmp_path, 4)
    with store.write(1) as writer:
        writer.append(torch.ones(3, 4))
    with pytest.raises(CheckpointError, match=r"ends before row 4; start afresh with --restart"):
        store.read(1, 0, 4)
    for call in (lambda: store.read(2, 0, 1), lambda: store.verify(2, "")):
        with pytest.raises(CheckpointError, match=r"rows-002.f32: cannot be read: .*; start afresh") as caught:
            call()
        assert caught.value.__cause__ is None  # else compress would add that the same command resumes


def test_existing_targets_are_safe(tiny_model, tmp_path):
    target = tmp_path / "out"
    first = compress(tiny_model, target, make_recipe("W8A16", "rtn"))
    again = compress(tiny_model, target, make_recipe("W8A16", "rtn"))
    assert again.resumed
    assert again.manifest == first.manifest
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        compress(tiny_model, target, make_recipe("W4A16-g16", "rtn"))
    assert hashes(target) == {name: entry["sha256"] for name, entry in first.manifest["tensors"].items()}
    with pytest.raises(UnsupportedError, match="already compressed"):
        compress(target, tmp_path / "twice", make_recipe("W4A16-g16", "rtn"))
    compress(tiny_model, target, make_recipe("W4A16-g16", "rtn"), overwrite=True)
    assert hashes(target) != {name: entry["sha256"] for name, entry in first.manifest["tensors"].items()}


def test_a_published_run_leaves_the_unfinished_run_of_another_recipe_alone(tiny_model, tmp_path, text):
    target, partial, recipe = tmp_path / "out", tmp_path / ".out.linnet-partial", make_recipe("W8A16", "rtn")
    compress(tiny_model, target, recipe)
    token = CancelToken()
    stop = StopAt(token, 25)
    with pytest.raises(Interrupted):
        compress(tiny_model, target, RECIPE, calibration_text=text, cancel=token, observer=stop, overwrite=True)
    assert compress(tiny_model, target, recipe).resumed
    assert (partial / "journal.jsonl").exists()
    assert compress(tiny_model, target, RECIPE, calibration_text=text, overwrite=True).resumed
    assert not partial.exists()


def test_a_published_run_cleans_up_after_itself(tiny_model, tmp_path, monkeypatch):
    """Killed between the rename and the end: the next run finds its own remains and deletes them."""
    target, partial, recipe = tmp_path / "out", tmp_path / ".out.linnet-partial", make_recipe("W8A16", "rtn")
    release = PartialOutput.release
    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, "release", lambda self, remove: release(self, remove=False))
        compress(tiny_model, target, recipe)
    assert partial.exists()
    assert compress(tiny_model, target, recipe).resumed
    assert not partial.exists()


def test_only_what_belongs_to_the_model_is_carried(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    belongs = [
        "LICENSE", "LICENSE.md", "Notice.txt", "USE_POLICY.md", "added_tokens.json", "chat_template.jinja",
        "generation_config.json", "merges.txt", "qwen.tiktoken", "special_tokens_map.json", "spiece.model",
        "tekken.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    ]  # fmt: skip
    stays = [
        "loss_certificate.json", "pytorch_model.bin.index.json", "eval_results.json", "quantize_config.json",
        "train.txt", "requirements.txt", "tokenizer.py", "args.json", "model.safetensors.index.json.bak",
        "trainer_state.json", "README.md", ".secret.json", ".own.model", "dataset.model.bin",
    ]  # fmt: skip
    for name in (*belongs, *stays):
        if not (model / name).exists():
            (model / name).write_text("{}")
    assert [path.name for path in carried_files(model)] == sorted(belongs)


def test_named_chat_templates_are_carried_and_replaced(tiny_model, tmp_path):
    """The folder of named templates comes along (K4)."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    folder = model / "additional_chat_templates"
    folder.mkdir()
    (model / "chat_template.jinja").write_text("usual {{ messages[0].content }}")
    (folder / "tool_use.jinja").write_text("tools {{ messages[0].content }}")
    (folder / "notes.txt").write_text("not a template")
    target, recipe = tmp_path / "small", make_recipe("W8A16", "rtn")

    def check() -> None:
        assert [path.name for path in (target / "additional_chat_templates").iterdir()] == ["tool_use.jinja"]
        templates = ChatTemplates.from_directory(target, {})
        talk = [{"role": "user", "content": "hi"}]
        assert (templates.render(talk), templates.render(talk, tools=[{}])) == ("usual hi", "tools hi")
        Checkpoint.open(target, verify=True).close()

    compress(model, target, recipe)
    check()
    compress(model, target, make_recipe("W4A16-g16", "rtn"), overwrite=True)
    check()
    (target / "additional_chat_templates" / "mine.jinja").write_text("a user's own")
    with pytest.raises(CheckpointError, match=r"additional_chat_templates/mine\.jinja"):
        compress(model, target, recipe, overwrite=True)
    (target / "additional_chat_templates" / "mine.jinja").unlink()
    (target / "additional_chat_templates" / "tool_use.jinja").write_text("changed")
    with pytest.raises(CheckpointError, match=r"additional_chat_templates/tool_use\.jinja: changed"):
        Checkpoint.open(target, verify=True)


def test_progress_reaches_the_end_and_never_goes_back(tiny_model, tmp_path, text):
    events: list[ProgressEvent] = []
    compress(tiny_model, tmp_path / "out", RECIPE, calibration_text=text, observer=events.append)
    done = [event.done for event in events]
    assert done == sorted(done)
    assert events[-1].stage == "publish"
    assert events[-1].done == pytest.approx(events[-1].total)
    assert {event.stage for event in events} == {"check", "calibrate", "compress", "publish"}
    assert events[0].stage == "check"  # before anything that takes time
    assert all(event.eta_s is not None for event in events if event.done > 0.1 * event.total)
    assert any(event.layer == "model.layers.1.mlp.down_proj" for event in events)
