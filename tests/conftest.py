"""One thread for the compiled kernels: on a busy machine waiting for a second one takes longer than all tests together."""

from __future__ import annotations

import numba
import torch

numba.set_num_threads(1)
torch.set_num_threads(1)
