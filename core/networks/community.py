"""The networks that people share, from a checkpoint's tensors."""

from __future__ import annotations

from torch import Tensor, nn

from core.errors import ModelError
from core.networks.recognise import recognise
from core.networks.rrdbnet import RRDBNet
from core.networks.rrdbnet_config import RRDBNetConfig
from core.networks.span import SPAN
from core.networks.span_config import SPANConfig
from core.networks.srvgg import SRVGGNetCompact


def build(checkpoint: dict[str, Tensor]) -> nn.Module:
    """Make the network that a checkpoint is of.

    Args:
        checkpoint: tensors by name, from `core.networks.checkpoints.read_tensors`.

    Returns:
        The network in evaluation mode, in the tensors' precision, on the CPU.

    Raises:
        ModelError: another network, or a tensor is missing, left over, or not of the shape that the others imply.
    """
    config = recognise({name: tuple(value.shape) for name, value in checkpoint.items()})
    net: nn.Module
    if isinstance(config, RRDBNetConfig):
        net, state = RRDBNet(config), RRDBNet.state_from(checkpoint)
    elif isinstance(config, SPANConfig):
        net, state = SPAN(config), SPAN.state_from(checkpoint)
    else:
        net, state = SRVGGNetCompact(config), checkpoint
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelError(f"the weights do not fit each other: {detail}") from error
    return net.eval()
