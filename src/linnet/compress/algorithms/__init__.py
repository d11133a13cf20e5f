# SPDX-License-Identifier: Apache-2.0
"""How codes and scales are chosen: one file each, listed in ``tables.py``."""
