# SPDX-License-Identifier: Apache-2.0
"""The residual stream in a Program: which tensors write it, which read it behind which norm's gain."""

from dataclasses import dataclass, field

from linnet.errors import UnsupportedError
from linnet.program.attributes import Norm
from linnet.program.program import Op, Program, WeightRef


@dataclass
class Stream:
    """Checkpoint names. ``tables``: rows are the stream; ``writers``: rows add to it (with biases ``added``);
    ``readers``: columns read it through the norm whose gain is named; ``gains``: norm -> what its gain is off by."""

    tables: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    readers: dict[str, str] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)


class _Walk:
    def __init__(self, program: Program, width: int) -> None:
        self.program, self.width, self.found = program, width, Stream()
        self.refs = {weight.name: weight.ref for weight in program.weights}
        self.writing = {name: op for op in program.ops for name in op.outputs}
        self.stream: set[str] = set()
        self.normed: dict[str, str] = {}

    def ref(self, op: Op, place: int = 0) -> WeightRef:
        return self.refs[op.weights[place]]

    def step(self, op: Op) -> None:
        inputs = [name for name in op.inputs if name in self.stream]
        behind = [self.normed[name] for name in op.inputs if name in self.normed]
        if op.kind == "embed":
            self.found.tables.add(self.ref(op).checkpoint_name)
            self.stream |= set(op.outputs)
        elif inputs and op.kind in ("add", "scale", "gather"):
            for name in op.inputs if op.kind == "add" else ():
                if name not in self.stream:
                    self.write(op, name)
            self.stream |= set(op.outputs)
        elif inputs and op.kind == "norm":
            self.norm(op)
        elif behind and op.kind in ("linear", "logits"):
            tensor, gain = self.ref(op).checkpoint_name, behind[0]
            if self.found.readers.setdefault(tensor, gain) != gain:
                raise UnsupportedError(f"{tensor} reads the stream through two norms, so that it cannot be rotated")
        elif inputs or behind:
            raise UnsupportedError(f"{op.name} ({op.kind}) reads the residual stream and cannot be rotated")

    def write(self, op: Op, name: str) -> None:
        linear = self.writing.get(name)
        if linear is None or linear.kind != "linear" or any(self.refs[each].rows for each in linear.weights):
            kind = "nothing" if linear is None else f"a {linear.kind}"
            raise UnsupportedError(f"{op.name} adds what {kind} makes; only a linear's output can be rotated")
        self.found.writers.add(self.ref(linear).checkpoint_name)
        self.found.added |= {self.refs[each].checkpoint_name for each in linear.weights[1:]}

    def norm(self, op: Op) -> None:
        attributes = op.attributes
        assert isinstance(attributes, Norm)
        if attributes.flavour != "rms" or attributes.size != self.width or len(op.weights) > 1:
            raise UnsupportedError(f"{op.name} is no plain RMS norm of the whole stream; rotations need those")
        gain = self.ref(op).checkpoint_name
        self.found.gains[gain] = attributes.offset
        self.normed[op.outputs[0]] = gain


def stream_of(program: Program, width: int) -> Stream:
    """The stream of a decoder. UnsupportedError, naming the op, where something but norms and linears touches it."""
    walk = _Walk(program, width)
    for op in program.ops:
        walk.step(op)
    tied = walk.found.tables & walk.found.readers.keys()
    if tied:
        raise UnsupportedError(
            f"{tied.pop()} is embedding and head at once (tied); a rotation folds the last norm's gain into the head "
            "alone, so it needs a head of its own"
        )
    return walk.found
