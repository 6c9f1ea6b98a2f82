"""What a model step is fed: fixed-length samples with document numbers, and the bytes that each token stands for."""

from typing import NamedTuple

import jax
import numpy as np

_Array = np.ndarray | jax.Array


class Batch(NamedTuple):
    """B samples of T tokens, a pytree of three int32 [B, T] arrays.

    `segments` numbers the documents inside each sample from 1; 0 is padding. Attention stays inside a segment, and the
    token at t+1 is a target of position t exactly when segments[t+1] == segments[t] != 0. `bytes` is the number of
    UTF-8 bytes that the token at t stands for, 0 for special tokens and padding. Loss, tokens and bytes count targets
    only.
    """

    tokens: _Array
    segments: _Array
    bytes: _Array
