# SPDX-License-Identifier: Apache-2.0
"""``linnet bench``: measuring what is served, by whomever."""
