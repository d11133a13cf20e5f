# SPDX-License-Identifier: Apache-2.0
"""Structured pruning: what goes together, that nothing else changes, who goes first, and what is said when it cannot
be."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import logits, rewritten
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_MODELS, write
from walking import FEW, StopAt, hashes

from linnet.backends.reference.attention import FunctionalMemory
from linnet.backends.reference.interpreter import run_ops, whole_sequence_inputs
from linnet.backends.reference.weights import WeightTable
from linnet.compress import CancelToken, Interrupted, check, compress, recipe_from
from linnet.compress.dependency import unit_groups
from linnet.compress.progress import Meter
from linnet.compress.survey import _score
from linnet.compress.tables import ALGORITHMS
from linnet.errors import ConfigError, UnsupportedError
from linnet.models.load import load_model

MODELS = {tiny.name: tiny for tiny in TINY_MODELS}
NEURONS = {"what": "neurons", "ratio": 0.5, "multiple": 16}


def prune(model: Path, target: Path, algorithm: str, text: str | None = None, **options):
    return compress(model, target, recipe(algorithm, **options), calibration_text=text)


def recipe(algorithm: str, *later: dict, **options):
    return recipe_from({"steps": [{"step": "prune", "algorithm": algorithm, "options": options}, *later], **FEW})


def parts(model, kind: str) -> list[set[tuple[str, int, int]]]:
    """Of every group: (tensor's last names, axis, indices of one unit)."""
    return [
        {(".".join(part.tensor.split(".")[-3:-1]), part.axis, part.indices.shape[1]) for part in group.parts}
        for group in unit_groups(model.program, kind)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    def make(name: str):
        directory = tmp_path_factory.mktemp(name)
        write(MODELS[name], directory)
        return load_model(directory)

    return make


def test_what_goes_together_is_found_in_the_program(written):
    llama = written("llama-2-biases")  # 6 heads of 8 on 2 KV heads, biases everywhere
    neuron = {("mlp.gate_proj", 0, 1), ("mlp.up_proj", 0, 1), ("mlp.down_proj", 1, 1)}
    assert parts(llama, "neurons") == [neuron] * 3
    assert parts(llama, "heads") == [{("self_attn.q_proj", 0, 8), ("self_attn.o_proj", 1, 8)}] * 3
    group = {(f"self_attn.{name}_proj", 0, size) for name, size in (("q", 24), ("k", 8), ("v", 8))}
    assert parts(llama, "kv_groups") == [group | {("self_attn.o_proj", 1, 24)}] * 3
    tensors = {part.tensor for part in unit_groups(llama.program, "kv_groups")[0].parts}
    assert {f"model.layers.0.self_attn.{name}_proj.bias" for name in "qkv"} < tensors
    assert "model.layers.0.self_attn.o_proj.bias" not in tensors  # the stream's own
    assert [group.pools.tolist() for group in unit_groups(llama.program, "heads")] == [[[0, 1, 2], [3, 4, 5]]] * 3
    phi = unit_groups(written("phi-3").program, "kv_groups")[0]
    fused = next(part for part in phi.parts if part.axis == 0)
    assert fused.tensor == "model.layers.0.self_attn.qkv_proj.weight"
    assert fused.indices[1].tolist() == [*range(24, 48), *range(56, 64), *range(72, 80)]
    neox = unit_groups(written("gpt-neox").program, "heads")[0]
    fused = next(part for part in neox.parts if part.axis == 0)
    assert fused.indices.tolist() == np.arange(144).reshape(3, 48).tolist()  # a head's query, key and value


@pytest.mark.parametrize(
    "options",
    [NEURONS, {"what": "heads", "count": 1}, {"what": "kv_groups", "count": 1}, {"what": "layers", "count": 1}],
    ids=lambda options: options["what"],
)
def test_what_is_left_is_the_model_that_does_not_read_what_went(fp32_model, tmp_path, options):
    """A unit without readers is no unit: the same logits come from the whole model with zeros in the readers'
    columns."""
    result = prune(fp32_model, tmp_path / "out", "magnitude", **options)
    record = result.manifest["record"]["pruned"][0]
    source = load_model(fp32_model)
    changed = {}
    for place, group in enumerate(unit_groups(source.program, options["what"])):
        scores = ALGORITHMS["prune"]["magnitude"]
        scores = scores(scores.Options(**options)).scores(
            group, lambda name: torch.tensor(source.checkpoint.tensor(name)), {}
        )
        if options["what"] == "layers":
            readers = [part for part in group.parts if part.tensor.endswith(("o_proj.weight", "down_proj.weight"))]
            gone = [] if place in record["which"] else [part.tensor for part in readers]
            changed |= {name: torch.zeros(source.checkpoint.info(name).shape) for name in gone}
            continue
        stays = record.get("which", [scores.sort(descending=True).indices[: record["kept"]].tolist()] * 2)[place]
        for part in group.readers:
            values = torch.tensor(source.checkpoint.tensor(part.tensor))
            values[:, np.delete(part.indices, stays, axis=0).ravel()] = 0
            changed[part.tensor] = values
    expected, found = logits(rewritten(source, changed)), logits(result.path)
    assert float((found - expected).abs().max()) < 1e-4 < float((logits(source) - expected).abs().max())


def changed_copy(model: Path, target: Path, change) -> Path:
    shutil.copytree(model, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("algorithm", ["wanda", "zeros", "taylor"])
def test_silent_neurons_go_first(fp32_model, tmp_path, text, algorithm):
    """32 of 64 neurons whose weights are the greatest of all, but whose gate never opens."""
    silent = np.random.default_rng(3).permutation(64)[:32]

    def change(tensors):
        for layer in range(2):
            here = f"model.layers.{layer}.mlp"
            tensors[f"{here}.up_proj.weight"][silent] *= 5
            tensors[f"{here}.gate_proj.weight"][silent] = 0

    model = changed_copy(fp32_model, tmp_path / "silent", change)
    by_data = prune(model, tmp_path / algorithm, algorithm, text, **NEURONS).path
    by_size = prune(model, tmp_path / "magnitude", "magnitude", norm="l1", **NEURONS).path
    before = logits(model)
    assert float((logits(by_data) - before).abs().max()) < 1e-4 < float((logits(by_size) - before).abs().max())


@pytest.mark.parametrize("of", ["unit", "weights"])
@pytest.mark.parametrize("what", ["neurons", "kv_groups", "heads"])
def test_taylor_is_the_gradient_of_the_loss_of_the_whole_model(fp32_model, tmp_path, text, what, of):
    """Against autograd through the whole program at once, row by row, and first differences of the loss itself."""
    job = check(fp32_model, recipe("taylor", what=what, count=1, of=of), text)
    source, meter = load_model(fp32_model), Meter(None, CancelToken(), {"survey": 1.0}, "")
    names = {weight.ref.checkpoint_name: weight.name for weight in source.program.weights}
    groups = unit_groups(source.program, what)
    dense = {
        part.tensor: torch.tensor(source.checkpoint.tensor(part.tensor)) for group in groups for part in group.parts
    }

    def loss(values: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        table = WeightTable(source.program, source, {names[name]: value for name, value in values.items()})
        memory, inputs = FunctionalMemory.of(source.program), whole_sequence_inputs(ids)
        logits = run_ops(source.program, 0, len(source.program.ops), inputs, ("logits",), table, memory)["logits"]
        return torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:].long(), reduction="sum")

    expected = [torch.zeros(len(group.columns)) for group in groups]
    for ids in torch.from_numpy(job.rows.token_ids).split(1):
        leaves = {name: values.clone().requires_grad_() for name, values in dense.items()}
        loss(leaves, ids).backward()
        for place, group in enumerate(groups):
            felt = torch.zeros(len(group.columns))
            for part in group.parts:
                products = leaves[part.tensor].detach() * leaves[part.tensor].grad
                for unit, indices in enumerate(torch.from_numpy(part.indices)):
                    own = products.index_select(part.axis, indices)
                    felt[unit] += own.sum() if of == "unit" else own.abs().sum()
            expected[place] += felt.square() if of == "unit" else felt
    found = _score(job, source, job.steps.prunes[0], tmp_path, meter)
    for scores, mine in zip(found, expected, strict=True):
        assert np.allclose(scores, mine, rtol=1e-2, atol=1e-3 * float(mine.max()))
    part, unit = groups[0].readers[0], groups[0].readers[0].indices[0]
    step = torch.zeros_like(dense[part.tensor])
    step[:, unit] = 1e-3 * dense[part.tensor][:, unit]
    more, less = ({part.tensor: dense[part.tensor] + sign * step} for sign in (1, -1))
    slope = float(loss(more, ids) - loss(less, ids)) / 2e-3
    felt = float((dense[part.tensor] * leaves[part.tensor].grad)[:, unit].sum())
    assert abs(slope - felt) < 0.02 * abs(felt) + 0.02


def test_the_layer_that_does_nothing_goes(fp32_model, tmp_path, text):
    def change(tensors):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.0.{name}.weight"][:] *= 1e-3

    model = changed_copy(fp32_model, tmp_path / "idle", change)
    result = prune(model, tmp_path / "out", "influence", text, what="layers", count=1)
    assert result.manifest["record"]["pruned"][0]["which"] == [1]
    kept = prune(model, tmp_path / "kept", "influence", text, what="layers", count=1, leave=[0])
    assert kept.manifest["record"]["pruned"][0]["which"] == [0]
    assert load_model(result.path).checkpoint.config["num_hidden_layers"] == 1


def test_a_stopped_run_goes_on_with_what_was_decided(fp32_model, tmp_path, text):
    """Pruned, smoothed and given codes, stopped in the survey and in the walk: the same bytes."""
    later = (
        {"step": "smooth", "algorithm": "smoothquant"},
        {"step": "quantise", "algorithm": "gptq", "scheme": "W4A16-g32"},
    )
    chain = recipe("wanda", *later, what="neurons", ratio=0.5, multiple=32)
    whole = compress(fp32_model, tmp_path / "whole", chain, calibration_text=text)
    down = load_model(whole.path).scheme_targets()[0]["model.layers.1.mlp.down_proj"]
    assert down == (32, 32)
    for count in (3, 12, 20, 28):
        token = CancelToken()
        with pytest.raises(Interrupted):
            compress(
                fp32_model,
                tmp_path / "stopped",
                chain,
                calibration_text=text,
                cancel=token,
                observer=StopAt(token, count),
            )
    resumed = compress(fp32_model, tmp_path / "stopped", chain, calibration_text=text)
    assert hashes(resumed.path) == hashes(whole.path)
    assert resumed.manifest["record"]["pruned"] == whole.manifest["record"]["pruned"]


REFUSED = [
    ("magnitude", {"what": "heads", "ratio": 0.3}, "ratio 0.3 of 2 query heads .* possible counts .ratios.: 1 .0.5."),
    ("magnitude", {"what": "neurons", "ratio": 0.1, "multiple": 32}, "possible counts .ratios.: 32 .0.5."),
    ("magnitude", {"what": "layers", "count": 2}, "count 2 of 2 layers is not possible"),
    ("magnitude", {"what": "layers", "count": 1, "leave": [0, 1]}, "possible counts .ratios.: none"),
    (
        "magnitude",
        {"what": "layers", "count": 1, "leave": [2]},
        "leave of a prune step names layer 2; there are 0 to 1",
    ),
    ("magnitude", {"what": "neurons", "ratio": 0.5, "leave": [0]}, "one number for all layers"),
    ("magnitude", {"what": "neurons"}, "either ratio .* or count"),
    ("magnitude", {"what": "neurons", "ratio": 1.5}, "above 0 and below 1"),
    ("influence", {"what": "neurons", "ratio": 0.5}, "influence ranks layers, not neurons"),
    ("wanda", {"what": "layers", "count": 1}, "wanda ranks neurons and heads and kv_groups, not layers"),
    ("zeros", {"what": "neurons", "ratio": 0.5, "below": -1}, "below of zeros is -1"),
]


@pytest.mark.parametrize(("algorithm", "options", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_is_said_before_anything_is_read(fp32_model, algorithm, options, said, text):
    with pytest.raises(ConfigError, match=said):
        check(fp32_model, recipe(algorithm, **options), text)


def test_a_family_without_words_for_it(tmp_path):
    """BLOOM's config has no feed-forward width, and its head size is what the hidden size leaves."""
    write(MODELS["bloom"], tmp_path)
    for options in ({"what": "neurons", "count": 16}, {"what": "heads", "count": 3}):
        with pytest.raises(UnsupportedError, match="a BloomForCausalLM whose config says"):
            check(tmp_path, recipe("magnitude", **options))


def test_heads_that_do_not_divide_the_hidden_size(tmp_path):
    write(MODELS["llama-1"], tmp_path)  # hidden 48, 6 heads
    with pytest.raises(ConfigError, match=r"5 heads would be left.*possible are 1, 2, 3, 4"):
        check(tmp_path, recipe("magnitude", what="heads", count=1))


def test_it_comes_first(fp32_model):
    step = {"step": "prune", "algorithm": "magnitude", "options": NEURONS}
    with pytest.raises(ConfigError, match=r"step 2 .prune. comes after quantise"):
        recipe_from({"steps": [{"step": "quantise", "algorithm": "rtn", "scheme": "W8A16"}, step]})
