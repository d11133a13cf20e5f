# SPDX-License-Identifier: Apache-2.0
"""Orthogonal matrices of +-1 / sqrt(n): Sylvester's doubling of Paley's two constructions, columns' signs drawn.

Paley 1933, "On orthogonal matrices": order q + 1 for a prime q = 3 (mod 4), 2 (q + 1) for a prime q = 1 (mod 4).
"""

import numpy as np
import torch

from linnet.errors import UnsupportedError


def rotation(order: int, seed: int, what: str) -> torch.Tensor:
    """A random Hadamard matrix [order, order], orthogonal, fp32. UnsupportedError, naming ``what``, for an order of
    which no matrix is known here (every multiple of 4 that has a power of two times a Paley order is)."""
    matrix = hadamard(order)
    if matrix is None:
        raise UnsupportedError(f"{what} is {order}, and no Hadamard matrix of that order is known here")
    draw = np.random.Generator(np.random.Philox(key=seed))
    signs = draw.integers(0, 2, order) * 2 - 1
    return torch.from_numpy((matrix * signs / np.sqrt(order)).astype(np.float32))


def hadamard(order: int) -> np.ndarray | None:
    """+-1 float64 [order, order] with orthogonal rows, None if neither construction and no doubling gives one."""
    if order in (1, 2):
        return np.array([[1.0]]) if order == 1 else np.array([[1.0, 1.0], [1.0, -1.0]])
    if order % 4:
        return None
    if _is_prime(order - 1):  # = 3 (mod 4)
        core = _residues(order - 1)
        skew = np.block([[np.zeros((1, 1)), np.ones((1, order - 1))], [-np.ones((order - 1, 1)), core]])
        return np.asarray(skew + np.eye(order))
    half = hadamard(order // 2)
    if half is not None:
        return np.block([[half, half], [half, -half]])
    prime = order // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):
        ones = np.ones((1, prime))
        symmetric = np.block([[np.zeros((1, 1)), ones], [ones.T, _residues(prime)]])
        turned, kept = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.asarray(np.kron(symmetric, turned) + np.kron(np.eye(prime + 1), kept))
    return None


def _residues(prime: int) -> np.ndarray:
    """Jacobsthal's matrix: whether i - j is a square modulo the prime (1), not (-1), or zero."""
    squares = {number * number % prime for number in range(1, prime)}
    kind = np.array([0.0] + [1.0 if number in squares else -1.0 for number in range(1, prime)])
    index = np.arange(prime)
    return np.asarray(kind[(index[:, None] - index[None, :]) % prime])


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
