# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: Programs lowered to the native executor (csrc/), one call per step."""
