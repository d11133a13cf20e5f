# SPDX-License-Identifier: Apache-2.0
"""Linnet makes a large language model small, proves what that cost, and serves it fast."""

__version__ = "0.1.0"
