"""CUDA's autocast on fake CPU tensors.

torch.autocast("cpu") brings the lower-precision list as far as these models use it, the nesting, the cache of weight
casts (only fp32 leaves that require grad) and its end with the outermost context, and checkpoint re-enters it when it
runs a forward again. What CUDA does otherwise, its fp32 and its promotion list, is added here by casting the inputs
of the functions that torch's own header lists for CUDA. A function that only one of the two devices casts is refused,
so that no step is traced with types it would not have.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
LOWER_PRECISION = (torch.bfloat16, torch.float16)
OPERATORS = {"__pow__": "pow", "__rpow__": "pow"}
"""Python's operators under the names of the functions they call."""
CPU_PROMOTES = frozenset({"cat", "stack", "index_copy"})
"""What the CPU's autocast casts to the widest of the inputs' types, and CUDA's leaves to the operator. CudaFunctions
calls cat outside of it."""


@cache
def cuda_list(macro: str) -> frozenset[str]:
    """Names of the operators that ATen/autocast_mode.h lists under `macro`, e.g. AT_FORALL_FP32."""
    body = re.search(rf"#define {macro}\(_\)((?:.*\\\n)*.*)\n", HEADER.read_text())
    if body is None:
        raise LookupError(f"{HEADER} lists no {macro}")
    return frozenset(re.findall(r"\b_\((\w+)", body.group(1)))


@cache
def registered(device: str) -> frozenset[str]:
    """Names of the operators that this torch has an autocast kernel for on `device` ("CPU", "CUDA")."""
    operators = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::"))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(re.split(r"::|\.", name)[1] for name in operators if has_kernel(name, f"Autocast{device}"))


def autocast_inputs(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments that CUDA's autocast would call `func` with, while torch.autocast("cpu") is on."""
    if not torch.is_autocast_enabled("cpu"):
        return args, kwargs
    name = OPERATORS.get(func.__name__, func.__name__)
    if name in cast_on_one_device():
        refuse_other_casts(name, {x.dtype for x in tree_leaves((args, kwargs)) if is_low(x) or is_fp32(x)})
    if name in cuda_list("AT_FORALL_FP32"):
        return cast((args, kwargs), torch.float32)
    if name in cuda_list("AT_FORALL_FP32_SET_OPT_DTYPE") and is_low(args[0]) and not names_dtype(args, kwargs):
        return args, kwargs | {"dtype": torch.float32}
    if name in cuda_list("AT_FORALL_PROMOTE") and any(is_fp32(x) for x in tree_leaves(args)):
        return cast((args, kwargs), torch.float32)
    return args, kwargs


@cache
def cast_on_one_device() -> frozenset[str]:
    """Names of functions that torch.autocast("cpu") casts and CUDA's does not, or the other way round to lower
    precision; the rest of CUDA's lists is applied here."""
    return (registered("CPU") - registered("CUDA")) | (cuda_list("AT_FORALL_LOWER_PRECISION_FP") - registered("CPU"))


def refuse_other_casts(name: str, dtypes: set[torch.dtype]) -> None:
    """Raise where such a function would get inputs of these types in other types than on CUDA."""
    if name in cuda_list("AT_FORALL_LOWER_PRECISION_FP"):
        same = torch.float32 not in dtypes
    else:
        same = len(dtypes) <= 1 if name in CPU_PROMOTES else dtypes <= {torch.float32}
    if not same:
        raise NotImplementedError(f"{name}: autocast on the CPU and on CUDA differ for inputs of {dtypes}")


def cast(arguments: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(dtype) if is_low(x) else x, arguments)


def is_low(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dtype in LOWER_PRECISION


def is_fp32(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dtype is torch.float32


def names_dtype(args: Any, kwargs: dict[str, Any]) -> bool:
    return kwargs.get("dtype") is not None or any(isinstance(x, torch.dtype) for x in args)
