"""One block of dsv4_mlx from the same folder, loaded as dsv4_mlx loads it, and its head."""

from __future__ import annotations

from collections import defaultdict

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

import dsv4_mlx.checkpoint
from dsv4_mlx.block import Block
from dsv4_mlx.cache import LayerCache
from dsv4_mlx.config import ModelArgs
from dsv4_mlx.mtp import MTPBlock

from ..checkpoints.folder import Folder
from ..oracle import CandidateRaised
