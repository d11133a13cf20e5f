# SPDX-License-Identifier: Apache-2.0
"""The first half of a block whose layers carry a state: ops from its norm to what is added to the stream."""

from typing import TYPE_CHECKING

from linnet.models.spec import StateSpaceSpec
from linnet.program import attributes as a
from linnet.program.program import SlotState, Value

if TYPE_CHECKING:
    from linnet.models.build import Builder

STATE_SLOTS = Value("state_slots", ("sequences",), "int32")
"""One more input of programs with slot states."""
SEQUENCES = ("query_start", "positions", STATE_SLOTS.name)
"""How conv and scan know which rows belong to which sequence, and where its state lies."""


def state_space(builder: "Builder", mixer: StateSpaceSpec, layer: int, x: str, hidden: int) -> str:
    """Norm, projections, convolution, scan, gate, output projection; the result is not yet added to the stream."""
    here = f"layers.{layer}.state_space"
    names = {name: f"{here}.{name}" for name in ("gate", "x", "inward", "outward", "steps")}
    normed = builder.before(f"{here}.norm", x, mixer.norm, hidden, layer)
    wanted = {names["gate"]: mixer.gate, names["x"]: mixer.x}
    if mixer.narrow_steps is None:
        wanted |= {names["inward"]: mixer.inward, names["outward"]: mixer.outward, names["steps"]: mixer.steps}
        gate, taken, inward, outward, steps = builder.linears(normed, layer, wanted)
        widths = {taken: mixer.x.outputs, inward: mixer.inward.outputs, outward: mixer.outward.outputs}
        starts = {taken: 0, inward: mixer.x.outputs, outward: mixer.x.outputs + mixer.inward.outputs}
        taken, inward, outward = (
            _convolved(builder, mixer, layer, name, width, (starts[name], starts[name] + width))
            for name, width in widths.items()
        )
    else:
        gate, taken = builder.linears(normed, layer, wanted)
        taken = _convolved(builder, mixer, layer, taken, mixer.x.outputs)
        read = {f"{here}.narrow_steps": mixer.narrow_steps, names["inward"]: mixer.inward}
        narrow, inward, outward = builder.linears(taken, layer, read | {names["outward"]: mixer.outward})
        steps = builder.linear(names["steps"], narrow, mixer.steps, layer)
    width, module = mixer.x.outputs, mixer.module(layer)
    heads = width // mixer.head_size
    decay = (heads,) if mixer.shared_decay else (heads, mixer.states)
    weights = [builder.weight(f"{here}.decay", f"{module}.A_log", decay)]
    weights.append(builder.weight(f"{here}.skip", f"{module}.D", (heads,)))
    if mixer.step_bias:
        weights.append(builder.weight(f"{here}.step_bias", f"{module}.dt_bias", (heads,)))
    builder.slot_states.append(SlotState(f"{here}.carried", (mixer.states, width)))
    inputs = (taken, steps, inward, outward, *SEQUENCES)
    attributes = a.Scan(mixer.states, mixer.head_size, mixer.groups)
    states = (builder.slot_states[-1].name,)
    made = builder.op("scan", f"{here}.scan", inputs, attributes, width, tuple(weights), states)
    made = builder.op("gate", f"{here}.gated", (gate, made), a.Gate(mixer.activation), width)
    if mixer.gated_norm is not None:
        made = builder.norm(f"{here}.gated_norm", made, mixer.gated_norm, width, layer, width // mixer.groups)
    output = builder.linear(f"{here}.output", made, mixer.output, layer)
    return builder.after(here, output, mixer.post_norm, mixer.multiplier, hidden, layer)


def _convolved(
    builder: "Builder",
    mixer: StateSpaceSpec,
    layer: int,
    x: str,
    width: int,
    rows: tuple[int, int] | None = None,
) -> str:
    """A value convolved along its sequence, and activated; ``rows`` of the taps are its own."""
    module, own = f"{mixer.module(layer)}.conv1d", None if rows is None else (rows,)
    weights = [builder.weight(f"{x}.taps", f"{module}.weight", (width, 1, mixer.taps), own)]
    if mixer.conv_bias:
        weights.append(builder.weight(f"{x}.conv_bias", f"{module}.bias", (width,), own))
    builder.slot_states.append(SlotState(f"{x}.last", (mixer.taps - 1, width)))
    states = (builder.slot_states[-1].name,)
    made = builder.op("conv", f"{x}.conv", (x, *SEQUENCES), a.Conv(mixer.taps), width, tuple(weights), states)
    return builder.op("gate", f"{x}.activation", (made,), a.Gate(mixer.activation), width)
