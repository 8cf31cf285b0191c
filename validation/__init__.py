"""What runs real PyTorch models."""

import logging

# PEFT imports torchao where it is installed, which then tells of its missing GPU libraries and of a deprecated call.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
