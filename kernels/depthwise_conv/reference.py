"""What `depthwise_conv` means, in plain PyTorch."""

from torch import Tensor
from torch.nn import functional


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    dilation: int = 1,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """See `vertebra.kernels.depthwise_conv`."""
    padding = weight.shape[-1] // 2 * dilation
    out = functional.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=len(weight))
    if activation is not None:
        out = functional.gelu(out)
    if gate is not None:
        out = out * gate
    return out if residual is None else residual + out
