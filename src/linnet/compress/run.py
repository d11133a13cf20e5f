# SPDX-License-Identifier: Apache-2.0
"""compress: check everything, walk, publish. The one entry of the room."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linnet.compress.caches import cache_record
from linnet.compress.calibration import WriteText
from linnet.compress.card import PICTURE_FILE, Made, model_card
from linnet.compress.disk import check_disk, check_place
from linnet.compress.figure import draw
from linnet.compress.heap import large_blocks_apart
from linnet.compress.job import Job, check, fingerprint
from linnet.compress.mixed import may_be_mixed
from linnet.compress.preflight import Estimate, check_memory, estimate
from linnet.compress.progress import (
    CancelToken,
    Meter,
    Observer,
    ProgressEvent,
    cancel_on_signals,
)
from linnet.compress.reading import recipe_from
from linnet.compress.recipe import Recipe
from linnet.compress.survey import decide
from linnet.compress.walk import Walk
from linnet.compress.work import total_work
from linnet.errors import CapacityError, CheckpointError, ConfigError, LinnetError
from linnet.formats import Checkpoint, CheckpointWriter, resolve_model
from linnet.formats.carried import carried_files
from linnet.formats.durable import START_AFRESH, DirectoryLock, os_errors, write_durable
from linnet.formats.manifest import read_manifest, tensor_bytes
from linnet.formats.partial import PARTIAL_NAMES, partial_of
from linnet.formats.spool import JOURNAL_FILE, read_journal
from linnet.formats.target import check_apart, check_partial, check_replaceable, real_target
from linnet.process_memory import peak_bytes
from linnet.text.gguf_directory import tokenizer_files

RECORD_VERSION = 2
_JOB_FILE = "job.json"
_SET_BY = {
    "threads": "threads (OMP_NUM_THREADS, else the cores)",
    "cores": "cores (taskset, or the container's CPU set)",
}
"""What sets a part of the fingerprint that nobody chose by a name of its own."""


@dataclass(frozen=True)
class CompressResult:
    """``manifest`` as published; its ``record`` holds recipe, fingerprint, layers and calibration.

    ``nothing_done``: the same run had published this before.
    """

    path: Path
    manifest: Mapping[str, Any]
    resumed: bool
    source_bytes: int
    output_bytes: int
    parameters: int
    nothing_done: bool = False

    @property
    def layers(self) -> Mapping[str, Mapping[str, Any]]:
        """Module -> algorithm, shape, errors."""
        layers: Mapping[str, Mapping[str, Any]] = self.manifest["record"]["layers"]
        return layers

    @property
    def bits_per_weight(self) -> float:
        """Of the whole model: everything stored, per parameter."""
        return 8 * self.output_bytes / self.parameters


def compress(
    source: str | Path,
    target: str | Path,
    recipe: Recipe,
    *,
    calibration_text: str | None = None,
    write_text: WriteText | None = None,
    observer: Observer | None = None,
    cancel: CancelToken | None = None,
    memory_ceiling_bytes: int | None = None,
    restart: bool = False,
    overwrite: bool = False,
    estimated: Callable[[Estimate], object] | None = None,
    command: str | None = None,
    from_compressed: bool = False,
) -> CompressResult:
    """Compress the model at ``source`` (directory or hub id) into the directory ``target``.

    An interrupted run with the same fingerprint continues after its last finished segment, and the result is
    bit-identical; with another fingerprint it is refused in words, unless ``restart`` forgets it. ``target`` appears
    complete, by one rename, or not at all. Without ``cancel``, SIGINT and SIGTERM stop the run at a resume point.
    A calibrated algorithm reads the recipe's text, else ``calibration_text``, else (but for the bundled model) what
    ``write_text`` has the model write; it is asked only after all cheaper checks.
    ``estimated`` is told, after one block has been tried (preflight.py), what the run will take. With
    ``memory_ceiling_bytes`` more than that is refused before the run, and ends it at a resume point. ``command``: what
    a person typed, for the model card, which then shows a picture of the errors too (where matplotlib is installed).
    ``from_compressed``: the source may be compressed already (GPTQ, GGUF …); its weights are dequantised one by one.
    Raises ConfigError, UnsupportedError, CheckpointError, CapacityError, and Interrupted when stopped.
    """
    large_blocks_apart()
    shown, target = (
        Path(target),
        _free_place(target, source, lambda found: found.digest() == recipe.digest(), overwrite),
    )
    job = check(source, recipe, calibration_text, memory_ceiling_bytes, write_text, from_compressed)
    _tell(observer, "hashing the model, looking for NaN")
    with Checkpoint.open(job.directory, verify=False) as checkpoint:
        parts = fingerprint(job, checkpoint.digest(finite=job.read_tensors()))
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    finished = None if restart else _already_published(target, identity)
    if finished is not None:
        _clean_after(target, identity)
        return _result(job, shown, finished, resumed=True, nothing_done=True)
    check_replaceable(target, overwrite)
    check_disk(job, target)
    if not restart:
        _check_resume(target, parts)
    kept = f"finished layers are kept in {partial_of(target).name} beside the target; the same command resumes"
    if restart:
        _forget(target, overwrite)
    token = cancel or CancelToken()
    with cancel_on_signals(token) if cancel is None else nullcontext():
        writer = CheckpointWriter(target, overwrite=overwrite, resume=True, identity=identity)
        try:
            resumed = bool(writer.notes)
            with os_errors(writer.scratch):
                write_durable(writer.scratch / _JOB_FILE, json.dumps(parts, indent=2).encode())
            meter = Meter(observer, token, total_work(job), kept, ceiling_bytes=memory_ceiling_bytes)
            job = decide(job, writer.scratch, meter)
            if memory_ceiling_bytes is not None or (estimated is not None and not resumed):
                _tell(observer, "trying one block")
                _foresee(job, writer, token, memory_ceiling_bytes, estimated)
                meter.restart()
            walk = Walk(job, writer)
            walk.run(meter)
            meter.advance("publish", target.name)
            _carry_files(job.directory, writer)
            record, config = _manifest_record(job, parts, identity, walk), _config(job)
            sizes = (job.source_bytes, writer.nbytes)
            picture = None if command is None else draw(record)
            if picture is not None:
                writer.write_bytes(PICTURE_FILE, picture)
            made = Made(_name_of(source), command, picture is not None)
            writer.write_text("README.md", model_card(made, config, record, job.stored, *sizes))
            manifest = writer.publish(config, record, job.rotations)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise CheckpointError(f"{error}; {kept}") from error
            raise
        finally:
            writer.close()
    return _result(job, shown, manifest, resumed)


def _foresee(
    job: Job,
    writer: CheckpointWriter,
    token: CancelToken,
    ceiling_bytes: int | None,
    estimated: Callable[[Estimate], object] | None,
) -> None:
    """Try one block; CapacityError, and nothing is left of a run that had not begun, if it shows too much memory."""
    found = estimate(job, token)
    if estimated is not None:
        estimated(found)
    if ceiling_bytes is not None:
        try:
            check_memory(found, ceiling_bytes)
        except CapacityError:
            if not writer.notes:
                writer.abandon()
            raise


def _tell(observer: Observer | None, doing: str) -> None:
    """Something is to be seen before the work can be counted."""
    if observer is not None:
        observer(ProgressEvent("check", doing, 0.0, 1.0, None, peak_bytes()))


def _name_of(source: str | Path) -> str:
    """A hub id as it is; of a local directory only its own name, since paths are nobody's business."""
    path = Path(source)
    return path.resolve().name if path.exists() else str(source)


def _free_place(target: str | Path, source: str | Path, made: Callable[[Recipe], bool], overwrite: bool) -> Path:
    """The target as it really is, if writing there can lose nothing; CheckpointError in a sentence otherwise.

    ``made``: whether a result of that recipe may be the one that is to be made, of whatever model.
    """
    with os_errors(Path(target)):
        real, directory = real_target(target), resolve_model(source)
        for place in (real, partial_of(real)):
            check_apart(place, directory)
        check_partial(partial_of(real), PARTIAL_NAMES)
        if overwrite or not _made_by(real, made):  # else it may be this very run's result
            check_replaceable(real, overwrite)
        check_place(real)
    return real


def check_target(target: str | Path, source: str | Path, recipe: Recipe, overwrite: bool = False) -> None:
    """Before a recipe's bits are weighed (``mix``): CheckpointError, in a sentence, if its result could not be
    published into ``target``, because something else lies there for instance."""
    _free_place(target, source, lambda found: may_be_mixed(found, recipe), overwrite)


def _config(job: Job) -> dict[str, Any]:
    """The source's, with what the result prescribes for its KV cache where the writer looks for it."""
    config = dict(job.source.checkpoint.config)
    if job.kv is not None:
        cache = cache_record(job.kv, calibrated=bool(job.steps.calibrated_caches()))
        config["quantization_config"] = {"kv_cache_scheme": cache, "ignore": list(job.steps.kept_caches)}
    return config


def _carry_files(source: Path, writer: CheckpointWriter) -> None:
    """Tokenizer, templates and settings of a directory; those of a GGUF file as such files."""
    if source.is_dir():
        for path in carried_files(source):
            writer.copy_file(path, path.relative_to(source).as_posix())
        return
    for name, text in tokenizer_files(source).items():
        writer.write_text(name, text)


def _result(
    job: Job, target: Path, manifest: Mapping[str, Any], resumed: bool, nothing_done: bool = False
) -> CompressResult:
    sizes = (job.source_bytes, tensor_bytes(manifest), job.source.parameters)
    return CompressResult(target, manifest, resumed, *sizes, nothing_done)


def _forget(target: Path, overwrite: bool) -> None:
    """Delete what an interrupted run left beside the target."""
    if partial_of(target).exists():
        CheckpointWriter(target, overwrite=overwrite).abandon()


def _manifest_record(job: Job, parts: Mapping[str, str], identity: str, walk: Walk) -> dict[str, Any]:
    calibration = None
    if job.rows is not None:
        rows, length = job.rows.token_ids.shape
        calibration = {
            "name": Path(job.rows.name).name,  # of a path its last part: where it lay is nobody's business
            "rows": rows,
            "length": length,
            "digest": job.rows.digest,
            "seed": job.recipe.seed,
            "left_out": job.repeats + walk.left_out(),
        }
    return {
        "record_version": RECORD_VERSION,
        "identity": identity,
        "fingerprint": dict(parts),
        "recipe": json.loads(job.recipe.canonical_json()),
        "schemes": {module: asdict(scheme) for module, scheme in job.schemes.items()},
        "calibration": calibration,
        **({"pruned": list(job.steps.pruned)} if job.steps.pruned else {}),
        **({"source_codes": job.codes} if job.codes else {}),
        **({"rotations": [asdict(each) for each in job.rotations]} if job.rotations else {}),
        "layers": walk.layers(),
        "blocks": walk.blocks(),
    }


def _made_by(target: Path, made: Callable[[Recipe], bool]) -> bool:
    """Whether such a recipe made what lies there."""
    record = (_published(target) or {}).get("record")
    found = record.get("recipe") if isinstance(record, dict) else None
    if not isinstance(found, dict):
        return False
    try:
        return made(recipe_from(found))
    except LinnetError:
        return False  # of another version


def _already_published(target: Path, identity: str) -> dict[str, Any] | None:
    """The manifest, if exactly this run already published into the target (it was killed right after)."""
    manifest = _published(target)
    if manifest is None or manifest.get("record", {}).get("identity") != identity:
        return None
    return manifest


def _published(target: Path) -> dict[str, Any] | None:
    """The manifest in the target, None without a readable one."""
    try:
        return read_manifest(target)
    except LinnetError:
        return None


def _clean_after(target: Path, identity: str) -> None:
    """Delete what the run that published left beside the target; an unfinished run of another recipe stays."""
    if not partial_of(target).exists():
        return
    try:
        lock = DirectoryLock(partial_of(target), target)
    except CheckpointError:
        return  # another process is writing it
    try:
        journal, _ = read_journal(partial_of(target) / JOURNAL_FILE)
        own = not journal or journal[0].get("identity") == identity  # without a journal there is nothing to resume
    except CheckpointError:
        own = False
    lock.release(remove=own)


def _check_resume(target: Path, parts: Mapping[str, str]) -> None:
    """ConfigError in words if an unfinished run beside the target differs from this one."""
    try:
        earlier = json.loads((partial_of(target) / "scratch" / _JOB_FILE).read_bytes())
    except (OSError, ValueError):
        return  # nothing there, or killed before it was written: the writer's own identity decides
    if not isinstance(earlier, dict):
        raise CheckpointError(f"{partial_of(target) / 'scratch' / _JOB_FILE} is damaged; {START_AFRESH}")
    differences = [
        f"{_SET_BY.get(name, name)} was {str(earlier.get(name))[:40]}, is {str(parts.get(name))[:40]}"
        for name in sorted(earlier.keys() | parts.keys())
        if earlier.get(name) != parts.get(name)
    ]
    if differences:
        raise ConfigError(
            f"an unfinished compression into {target} differs from this one: {'; '.join(differences)}. "
            f"Repeat the first command to resume it, or {START_AFRESH}"
        )
