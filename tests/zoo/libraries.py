"""The libraries whose networks are in the zoo, with torchvision beside any build of PyTorch.

torchvision's wheel has a compiled library of operations for one build of PyTorch. Its models need none of them; only two schemas
have to be known before it can be imported.
"""

from __future__ import annotations

import importlib
import sys

import torch

try:
    torchvision = importlib.import_module("torchvision")
except RuntimeError:  # operator torchvision::nms does not exist
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    schemas = torch.library.Library("torchvision", "DEF")
    schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision = importlib.import_module("torchvision")

# They import torchvision.
snntorch, timm, transformers = (importlib.import_module(name) for name in ("snntorch", "timm", "transformers"))
