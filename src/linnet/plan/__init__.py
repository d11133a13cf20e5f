# SPDX-License-Identifier: Apache-2.0
"""What a model will need and how fast it can possibly be, before it is loaded."""

from linnet.plan.describe import describe
from linnet.plan.kv import KVLayer, KVShape
from linnet.plan.ledger import (
    TOKENIZER_READING,
    Ledger,
    kv_shape,
    output_rows,
    predict,
    server_growth_bytes,
)
from linnet.plan.needs import StepNeeds, least_step_tokens, step_needs
from linnet.plan.roofline import Bound, Roofline, roofline

__all__ = [
    "TOKENIZER_READING",
    "Bound",
    "KVLayer",
    "KVShape",
    "Ledger",
    "Roofline",
    "StepNeeds",
    "describe",
    "kv_shape",
    "least_step_tokens",
    "output_rows",
    "predict",
    "roofline",
    "server_growth_bytes",
    "step_needs",
]
