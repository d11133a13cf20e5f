# SPDX-License-Identifier: Apache-2.0
"""What work is counted in: seconds of two AVX2 cores, so that its kinds weigh alike from the start.

Only for progress and ETA, never for decisions: the meter learns how fast each kind really goes.
"""

PRODUCT_S = 1 / 130e9
"""A floating point operation of a wide matrix product."""
SCORE_S = 1 / 40e9
"""One of attention, softmax included."""
ELEMENT_S = 1 / 1e9
"""An element of a value written: norms, gates, files."""
COLUMN_S = 70e-6
"""A column of a calibrated fit, whatever its length."""
ROUNDED_S = 30e-9
"""An element of a weight, to be scaled, rounded and packed."""
BYTE_S = 1 / 400e6
"""A byte of the result: hashed, written, flushed."""
COMMIT_S = 0.02
