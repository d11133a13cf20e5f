# SPDX-License-Identifier: Apache-2.0
"""What a model will need and how fast it can possibly be, before it is loaded."""

from linnet.plan.describe import describe
from linnet.plan.ledger import Ledger, kv_bytes_per_token, output_rows, predict
from linnet.plan.roofline import Bound, Roofline, roofline

__all__ = ["Bound", "Ledger", "Roofline", "describe", "kv_bytes_per_token", "output_rows", "predict", "roofline"]
