# SPDX-License-Identifier: Apache-2.0
"""Publishing: all or nothing, one writer, the same bytes after a crash, one line when the disk says no."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from model_files import CONFIG, tensors, write_model

from linnet.errors import CheckpointError, ConfigError
from linnet.formats import Checkpoint, CheckpointWriter, shard_writer, writer
from linnet.schemes import PackedWeight, parse_scheme, quantize_weight
from linnet.schemes.layouts import INT_QUANTIZED


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def leftovers(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


def test_a_published_directory_is_complete_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = write_model(tmp_path / "deep" / "m", shard_bytes=9000)
    names = {path.name for path in path.iterdir()}
    assert {"config.json", "generation_config.json", "linnet_manifest.json", "model.safetensors.index.json"} <= names
    assert leftovers(path.parent) == []
    assert oct(path.stat().st_mode & 0o777) == oct(0o777 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_existing_targets(tmp_path: Path) -> None:
    target = write_model(tmp_path / "m")
    before = hashes(target)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        CheckpointWriter(target)
    assert hashes(target) == before
    write_model(target, "W8A16", overwrite=True)
    with Checkpoint.open(target) as checkpoint:
        packed = checkpoint.linear("layers.0.up")
        assert isinstance(packed, PackedWeight)
        assert packed.scheme.weight.element == "int8"
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match=r"Linnet did not write it .* will not be overwritten"):
        CheckpointWriter(tmp_path / "home", overwrite=True)
    with pytest.raises(CheckpointError, match="not a directory"):
        CheckpointWriter(tmp_path / "home" / "thesis.tex")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(CheckpointError, match="not a directory"):
        CheckpointWriter(tmp_path / "link", overwrite=True)
    assert leftovers(tmp_path) == []


def test_failing_inside_leaves_target_and_neighbours_alone(tmp_path: Path) -> None:
    target = write_model(tmp_path / "m")
    before = hashes(target)

    def fail() -> None:
        with CheckpointWriter(target, overwrite=True) as writer:
            writer.add("x", np.zeros(4, dtype=np.float32))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert hashes(target) == before
    assert leftovers(tmp_path) == []


def test_two_writers_on_one_target(tmp_path: Path) -> None:
    first = CheckpointWriter(tmp_path / "m")
    with pytest.raises(CheckpointError, match="another process is writing it"):
        CheckpointWriter(tmp_path / "m")
    first.add("x", np.zeros(4, dtype=np.float32))
    first.publish(CONFIG)
    with pytest.raises(CheckpointError, match="exists"):
        CheckpointWriter(tmp_path / "m")
    second = CheckpointWriter(tmp_path / "m", overwrite=True)
    second.abandon()
    assert leftovers(tmp_path) == []


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "m") as writer:
        writer.add("x", np.zeros(4, dtype=np.float32))
        with pytest.raises(ConfigError, match="already written"):
            writer.add("x", np.zeros(4, dtype=np.float32))
        with pytest.raises(ConfigError, match="cannot be a tensor's name"):
            writer.add("__metadata__", np.zeros(4, dtype=np.float32))
        with pytest.raises(ConfigError, match="complex64 cannot be stored"):
            writer.add("z", np.zeros(4, dtype=np.complex64))
        for name in ("config.json", "../x.json", ".hidden", "", "model.safetensors", "linnet_manifest.json"):
            with pytest.raises(ConfigError, match="cannot be a file of the checkpoint"):
                writer.write_json(name, {})
        with pytest.raises(CheckpointError, match="No such file"):
            writer.copy_file(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="no tensor was added"):
        with CheckpointWriter(tmp_path / "m") as writer:
            writer.publish(CONFIG)


def test_other_layouts_are_converted(tmp_path: Path) -> None:
    from linnet.schemes import pack

    scheme = parse_scheme("W4A8-g16").linear
    canonical = quantize_weight(tensors()["layers.0.up.weight"], scheme)
    loose = pack(canonical.codes(), canonical.scales(), None, scheme, layout=INT_QUANTIZED)
    with CheckpointWriter(tmp_path / "m") as writer:
        writer.add_packed("up", loose)
        writer.publish(CONFIG)
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        back = checkpoint.linear("up")
        assert isinstance(back, PackedWeight)
        assert back.layout.name == "pack-quantized"
        assert np.array_equal(back.dequantize(), canonical.dequantize())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "copy_file_range", "rename"])
def test_a_disk_that_says_no(code: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails: one line, target untouched, and the run can be resumed to the same bytes."""
    reference = hashes(write_model(tmp_path / "reference"))
    target = write_model(tmp_path / "m", "W8A16")
    before = hashes(target)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call == "rename":
            patch.setattr("ctypes.CDLL", lambda *a, **k: object())  # no atomic exchange: plain renames
        patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError) as caught:
            write_model(target, overwrite=True, resume=True)
    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hashes(target) == before
    write_resumed(target)
    assert hashes(target) == reference
    assert leftovers(tmp_path) == []


def test_a_target_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "m", tmp_path / ("x" * 300), Path("/proc/m")):
        with pytest.raises(CheckpointError, match="cannot be written"):
            CheckpointWriter(target)


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write."""
    code = """
        import resource, signal, sys
        import numpy as np
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from linnet.errors import CheckpointError
        from linnet.formats import CheckpointWriter
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            with CheckpointWriter(sys.argv[1]) as writer:
                writer.add("x", np.zeros(1 << 20, dtype=np.float32))
        except CheckpointError as error:
            print(error)
    """
    result = run(code, tmp_path / "m")
    assert "cannot be written: File too large" in result.stdout
    assert list(tmp_path.iterdir()) == []


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    here = [str(Path(__file__).parent), *[path for path in sys.path if path]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(here)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def write_resumed(directory: Path, stop_after: int | None = None) -> list[dict[str, object]]:
    """write_model's steps, skipping what an earlier run committed; ``stop_after`` commits -> SIGKILL ourselves."""
    preset = parse_scheme("W4A16-g16")
    with CheckpointWriter(directory, overwrite=True, resume=True) as writer:
        notes = list(writer.notes)
        for name, tensor in tensors().items():
            linear = name.endswith(("up.weight", "down.weight"))
            stored = f"{name}_packed" if linear else name
            if stored in writer.finished:
                continue
            if linear:
                writer.add_packed(name.removesuffix(".weight"), quantize_weight(tensor, preset.linear))
            else:
                writer.add(name, tensor)
            if name.endswith("odd"):
                if stop_after == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                writer.commit()
                stop_after = None if stop_after is None else stop_after - 1
        writer.write_json("generation_config.json", {"eos_token_id": 1})
        if stop_after == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        writer.publish(CONFIG, {"recipe": "test"})
        return notes


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_kill_dash_nine_and_resume_gives_the_same_bytes(stop_after: int, tmp_path: Path) -> None:
    reference = hashes(write_model(tmp_path / "reference"))
    result = run(
        "import sys; from pathlib import Path; import test_writer; "
        "test_writer.write_resumed(Path(sys.argv[1]), int(sys.argv[2]))",
        tmp_path / "m", stop_after,
    )  # fmt: skip
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert leftovers(tmp_path) == [".m.linnet-partial"]
    assert not (tmp_path / "m").exists()
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path / ".m.linnet-partial")
    assert len(write_resumed(tmp_path / "m")) == stop_after
    assert hashes(tmp_path / "m") == reference
    assert leftovers(tmp_path) == []


class Crash(BaseException):
    """Nobody catches it."""


def test_a_crash_at_any_step_of_assembling_gives_the_same_bytes(tmp_path: Path, monkeypatch) -> None:
    reference = hashes(write_model(tmp_path / "reference"))
    target = tmp_path / "m"
    step, publishing = [0, -1], [False]
    assemble = writer.write_shards

    def counted(function):
        def call(*arguments, **options):
            if publishing[0]:
                step[0] += 1
                if step[0] == step[1]:
                    raise Crash
            return function(*arguments, **options)

        return call

    def observed(*arguments, **options):
        publishing[0] = True
        try:
            return assemble(*arguments, **options)
        finally:
            publishing[0] = False

    monkeypatch.setattr(writer, "write_shards", observed)
    for name in ("fsync", "unlink", "pwrite", "copy_file_range"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    write_resumed(target)
    total = step[0]
    assert total > 20
    for crash_at in range(1, total + 1):
        shutil.rmtree(target)
        step[:] = [0, crash_at]
        with pytest.raises(Crash):
            write_resumed(target)
        assert not target.exists()
        step[1] = -1
        write_resumed(target)
        assert hashes(target) == reference, crash_at
        assert leftovers(tmp_path) == []


def test_the_name_of_what_is_assembled_is_durable_before_a_piece_is_given_up(tmp_path: Path, monkeypatch) -> None:
    """Else a loss of power could take the directory away, and with it what pieces were given up for."""
    done: list[tuple[str, str]] = []
    sync, unlink = os.fsync, os.unlink

    def synced(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def unlinked(path, **options) -> None:
        done.append(("unlink", os.fspath(path)))
        unlink(path, **options)

    write_resumed(tmp_path / "first")  # whatever is imported or made once
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "unlink", unlinked)
    with CheckpointWriter(tmp_path / "m", resume=True) as output:
        output.add("x", np.zeros((2, 2), np.float32))
        output.commit()
        partial = output.scratch.parent
        done.clear()
        output.publish(CONFIG)
    given_up = next(place for place, (call, path) in enumerate(done) if call == "unlink" and "pieces" in path)
    assert ("fsync", str(partial)) in done[:given_up]
    assert (partial.name, (tmp_path / "m").is_dir()) == (".m.linnet-partial", True)


def test_only_one_piece_is_on_disk_twice(tmp_path: Path, monkeypatch) -> None:
    pieces, piece_bytes, most = 8, 1 << 20, 0
    copied = shard_writer.copy_range

    def watched(*arguments) -> None:
        nonlocal most
        copied(*arguments)
        most = max(most, sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*")))

    monkeypatch.setattr(shard_writer, "copy_range", watched)
    with CheckpointWriter(tmp_path / "m") as output:
        for number in range(pieces):
            output.add(f"x{number}", np.full(piece_bytes // 4, number, np.float32))
            output.commit()
        output.publish(CONFIG)
    assert (pieces + 1) * piece_bytes <= most < (pieces + 1.5) * piece_bytes


def test_half_written_journal_lines_and_pieces_do_not_count(tmp_path: Path) -> None:
    reference = hashes(write_model(tmp_path / "reference"))
    writer = CheckpointWriter(tmp_path / "m", resume=True)
    arrays = tensors()
    for name in list(arrays)[:2]:
        writer.add(name, arrays[name])
    writer.close()  # never committed
    partial = tmp_path / ".m.linnet-partial"
    journal = partial / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"piece":"pieces/00000.bin","tens')
    (partial / "pieces" / "00007.bin").write_bytes(b"what is this")
    write_resumed(tmp_path / "m")
    assert hashes(tmp_path / "m") == reference


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"\x00" * len(text),
        lambda text: text[: len(text) // 2],
        lambda text: b"[]",
        lambda text: b"{}",
        lambda text: text.replace(b'"x', b'"y', 1) if b'"x' in text else text.replace(b"one", b"two"),
        lambda text: b"[" * 100_000,
    ],
    ids=["zeros", "half", "list", "empty", "changed", "deep"],
)
def test_a_damaged_journal_line_is_one_sentence(line: int, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "m", resume=True, identity="one")
    for name in ("x0", "x1"):
        writer.add(name, np.arange(16, dtype=np.float32))
        writer.commit({"note": name})
    writer.close()
    journal = tmp_path / ".m.linnet-partial" / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    lines[line] = damage(lines[line])
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(CheckpointError, match=rf"line {line + 1} is damaged; start afresh with --restart"):
        CheckpointWriter(tmp_path / "m", resume=True, identity="one")
    CheckpointWriter(tmp_path / "m").abandon()
    assert leftovers(tmp_path) == []


def test_spooled_files_that_cannot_be_read(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "m", resume=True) as writer:
        writer.add("x", np.arange(16, dtype=np.float32))
        writer.commit()
    partial = tmp_path / ".m.linnet-partial"
    (partial / "pieces" / "00000.bin").unlink()
    with pytest.raises(CheckpointError, match=r"00000.bin: cannot be read: No such file .*; start afresh"):
        CheckpointWriter(tmp_path / "m", resume=True)
    (partial / "pieces").rmdir()
    with pytest.raises(CheckpointError, match=r"pieces: cannot be read: No such file .*; start afresh"):
        CheckpointWriter(tmp_path / "m", resume=True)
    (partial / "journal.jsonl").unlink()
    (partial / "journal.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"journal.jsonl: cannot be read: Is a directory; start afresh"):
        CheckpointWriter(tmp_path / "m", resume=True)


def test_resume_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "m", resume=True, identity="one")
    writer.add("x", np.arange(16, dtype=np.float32))
    writer.commit({"block": 0})
    (writer.scratch / "rows.bin").write_bytes(b"rows")
    writer.close()
    with pytest.raises(ConfigError, match="unfinished output of another run"):
        CheckpointWriter(tmp_path / "m", resume=True, identity="two")
    again = CheckpointWriter(tmp_path / "m", resume=True, identity="one")
    assert again.finished == {"x"}
    assert again.notes == ({"block": 0},)
    assert (again.scratch / "rows.bin").read_bytes() == b"rows"
    again.close()
    piece = tmp_path / ".m.linnet-partial" / "pieces" / "00000.bin"
    piece.write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match="spooled tensor 'x' is damaged"):
        CheckpointWriter(tmp_path / "m", resume=True, identity="one")
    with CheckpointWriter(tmp_path / "m", identity="two") as fresh:
        assert fresh.finished == frozenset()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_the_schemes_of_resumed_modules_reach_the_config(key: str, tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "m", resume=True)
    for module, name in (("a", "W4A16-g16-asym"), ("b", "W8A8"), ("c", "NF4-g16"), ("d", "TERNARY")):
        writer.add_packed(module, quantize_weight(tensors()["layers.0.up.weight"], parse_scheme(name).linear))
    writer.commit()
    writer.close()
    with CheckpointWriter(tmp_path / "m", resume=True) as writer:
        cache = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
        writer.publish({**CONFIG, key: {"quant_method": "stale", "kv_cache_scheme": cache}})
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"] == cache, "what a dense source prescribes for its cache stays"
    assert (config["quant_method"], config["format"]) == ("linnet", "mixed-precision")
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        for module, name in (("a", "W4A16-g16-asym"), ("b", "W8A8"), ("c", "NF4-g16"), ("d", "TERNARY")):
            assert checkpoint.scheme_of(module) == parse_scheme(name).linear
