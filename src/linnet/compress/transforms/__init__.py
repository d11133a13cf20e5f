# SPDX-License-Identifier: Apache-2.0
"""What makes weights easier to compress without changing the function: one file each, listed in ``tables.py``."""
