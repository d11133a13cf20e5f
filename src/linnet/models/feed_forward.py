# SPDX-License-Identifier: Apache-2.0
"""The second half of a block, of either kind: ops from its norm to what is added to the stream."""

from typing import TYPE_CHECKING

from linnet.errors import UnsupportedError
from linnet.models.spec import ExpertsSpec, FeedForward, MlpSpec, Projection
from linnet.program import attributes as a

if TYPE_CHECKING:
    from linnet.models.build import Builder


def feed_forward(builder: "Builder", part: FeedForward, layer: int, x: str, hidden: int) -> str:
    """Norm, feed-forward; the result is not yet added to the stream."""
    here = f"layers.{layer}.mlp"
    normed = builder.before(f"{here}.norm", x, part.norm, hidden, layer)
    if isinstance(part, MlpSpec):
        output = _gated(builder, here, part, layer, normed)
    else:
        output = _experts(builder, here, part, layer, normed)
    return builder.after(here, output, part.post_norm, part.multiplier, hidden, layer)


def _gated(builder: "Builder", here: str, mlp: MlpSpec, layer: int, normed: str) -> str:
    wanted = ({} if mlp.gate is None else {f"{here}.gate": mlp.gate}) | {f"{here}.up": mlp.up}
    inputs = builder.linears(normed, layer, wanted)
    activated = builder.op("gate", f"{here}.activation", inputs, a.Gate(mlp.activation), mlp.up.outputs)
    if mlp.inner_norm is not None:
        activated = builder.norm(f"{here}.inner_norm", activated, mlp.inner_norm, mlp.up.outputs, layer)
    return builder.linear(f"{here}.down", activated, mlp.down, layer)


def _experts(builder: "Builder", here: str, part: ExpertsSpec, layer: int, normed: str) -> str:
    """The sum of what the chosen experts make, and of what the shared one does."""
    groups = part.groups, part.groups_chosen, part.group_best
    routing = a.Route(part.chosen, part.scoring, part.normalise, part.factor, *groups)
    ids, weights = _route(builder, here, normed, part.router, layer, routing, part.correction)
    names = ("up",) if part.gate is None else ("gate", "up")
    inputs = tuple(_of_each(builder, f"{here}.{name}", normed, ids, part, name, layer) for name in names)
    gate = a.Gate(part.activation, part.limit, part.up_offset, pairs=part.gate is None)
    each, inner = part.chosen, part.down.columns
    activated = builder.op("gate", f"{here}.activation", inputs, gate, inner, each=each)
    made = _of_each(builder, f"{here}.down", activated, ids, part, "down", layer)
    width, shared = part.down.outputs, part.shared
    shown = f"{here}.output" if shared is None else f"{here}.chosen"
    output = builder.op("combine", shown, (made, weights), a.Combine(), width)
    if shared is None:
        return output
    common = _gated(builder, f"{here}.shared", shared.mlp, layer, normed)
    if shared.gate is not None:
        share = _route(builder, f"{here}.shared", normed, shared.gate, layer, a.Route(1, "sigmoid"))[1]
        common = builder.op("combine", f"{here}.shared.output", (common, share), a.Combine(), width)
    return builder.op("add", f"{here}.output", (output, common), a.Add(), width)


def _route(
    builder: "Builder",
    here: str,
    x: str,
    router: Projection,
    layer: int,
    route: a.Route,
    correction: str | None = None,
) -> tuple[str, str]:
    """The experts that every token gets, and how much each of them counts."""
    module = router.module.format(layer=layer)
    weights = [builder.weight(f"{here}.router.weight", f"{module}.weight", (router.outputs, router.columns))]
    if router.bias:
        weights.append(builder.bias(f"{here}.router", router, layer))
    scores = builder.op("router", f"{here}.router", (x,), a.Router(), router.outputs, tuple(weights))
    added: tuple[str, ...] = ()
    if correction is not None:
        added = (builder.weight(f"{here}.correction", correction.format(layer=layer), (router.outputs,)),)
    outputs = f"{here}.ids", f"{here}.weights"
    return builder.pair("route", f"{here}.route", (scores,), route, outputs, route.chosen, added)


def _of_each(builder: "Builder", name: str, x: str, ids: str, part: ExpertsSpec, which: str, layer: int) -> str:
    """One linear of every expert."""
    whole: Projection = getattr(part, which)
    own = [part.of(whole, expert) for expert in range(part.experts)]
    weights = []
    for expert, projection in enumerate(own):
        module = projection.module.format(layer=layer)
        if module in builder.terms or module in builder.rotations:
            raise UnsupportedError(f"{module} is an expert's, which is one matrix: it takes no terms and no rotation")
        shape = (projection.outputs, projection.columns)
        weights.append(builder.weight(f"{name}.{expert}.weight", f"{module}.weight", shape, projection.rows))
    if whole.bias:
        weights += [builder.bias(f"{name}.{expert}", projection, layer) for expert, projection in enumerate(own)]
    attributes = a.Experts(part.experts, whole.bias)
    return builder.op("experts", name, (x, ids), attributes, whole.outputs, tuple(weights), each=part.chosen)
