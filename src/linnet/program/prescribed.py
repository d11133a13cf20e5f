# SPDX-License-Identifier: Apache-2.0
"""Activations as a checkpoint prescribes them: what can be computed, and what each kind is in a Program."""

from dataclasses import replace

from linnet.errors import UnsupportedError
from linnet.program.program import Weight, WeightRef
from linnet.schemes.scheme import LinearScheme, Scheme

INPUT_SCALE, INPUT_ZERO_POINT = "input_scale", "input_zero_point"
"""Leaves of the names under which a source gives a linear's static scale and zero point, one number each."""
COLUMN_ORDER = "column_order"
"""And the order of its columns where they lie sorted by group."""


ROUNDED = ("int8", "int4", "fp8_e4m3")
"""What activations are rounded to."""


def keeps_codes(scheme: Scheme) -> bool:
    """Whether a rounded activation is multiplied as the integers it is made of, not as the numbers they stand for."""
    return scheme.numbers.integer and scheme.symmetric


def prescribed_scheme(weight: Weight) -> Scheme | None:
    """What this weight's checkpoint wants its input rounded to; None: nothing. Dynamic scales are fp32.

    A dynamic scale for all rows of a step would make a token's answer depend on its neighbours: it is computed per
    token, which is finer. UnsupportedError for what nothing here can execute.
    """
    if not isinstance(weight.dtype, LinearScheme) or weight.dtype.input is None:
        return None
    wanted = weight.dtype.input
    known = refuse_element(wanted) is None
    if known and not wanted.dynamic and wanted.granularity == "tensor":
        return wanted
    if known and wanted.dynamic and wanted.granularity in ("tensor", "token", "group"):
        granularity = "token" if wanted.granularity == "tensor" else wanted.granularity
        return replace(wanted, granularity=granularity, scale_dtype="fp32")
    kind = ("dynamic" if wanted.dynamic else "static") + (" symmetric" if wanted.symmetric else " asymmetric")
    raise UnsupportedError(
        f"weight {weight.ref.checkpoint_name} prescribes {kind} {wanted.element} activations per {wanted.granularity}; "
        "supported are int8, symmetric int4 and fp8_e4m3 activations, dynamic per token, group or tensor, or "
        "static per tensor"
    )


def refuse_element(scheme: Scheme) -> str | None:
    """None, or why activations cannot be rounded to such numbers."""
    if scheme.element not in ROUNDED:
        return f"activations are quantised to {', '.join(ROUNDED)}, not {scheme.element}"
    if scheme.element == "int4" and not scheme.symmetric:
        return "int4 activations have no zero point"
    return None


def refuse_rounding(scheme: Scheme) -> str | None:
    """None, or why activations cannot be rounded like this."""
    if (reason := refuse_element(scheme)) is not None:
        return reason
    accepted = ("token", "group") if scheme.dynamic else ("tensor",)
    if scheme.granularity not in accepted:
        kind = "dynamic" if scheme.dynamic else "static"
        return f"{kind} activations are quantised per {' or '.join(accepted)}, not per {scheme.granularity}"
    return None


def static_parameters(weight: Weight, scheme: Scheme) -> tuple[Weight, ...]:
    """The scale, and the zero point of an asymmetric scheme, that a static rounding in front of ``weight`` reads."""
    if scheme.dynamic:
        return ()
    module = weight.ref.checkpoint_name.removesuffix(".weight")
    leaves = (INPUT_SCALE,) if scheme.symmetric else (INPUT_SCALE, INPUT_ZERO_POINT)
    return tuple(Weight(f"{weight.name}.{leaf}", WeightRef(f"{module}.{leaf}"), (1,), "fp32") for leaf in leaves)
