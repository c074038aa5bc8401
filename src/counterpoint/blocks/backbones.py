"""Backbones: a chain of stages that can be run whole or step by step."""

from abc import ABC
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, final

from torch import Tensor, nn

from counterpoint._checks import check_integer, check_range
from counterpoint._optional import require
from counterpoint.errors import OptionError, ShapeError

_RESNET_WIDTH = 64


class Backbone(nn.Module, ABC):
    """A chain of stages.

    Attributes:
        stages: The stages in order; stage 0 reads the input.
        channels: Channels that each stage gives, one number per stage. A feature is (B, C, H, W), (B, C), or (B, L, C).
    """

    key: ClassVar[str]
    source: ClassVar[str]
    stages: nn.ModuleList
    channels: tuple[int, ...]

    def step(self, stage: int, x: Tensor) -> Tensor:
        """Run one stage on the output of the one before it."""
        return self.stages[stage](x)

    def features(self, x: Tensor) -> list[Tensor]:
        """Run all stages and return the output of each."""
        outputs: list[Tensor] = []
        for stage in range(len(self.stages)):
            x = self.step(stage, x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last stage."""
        return self.features(x)[-1]

    @classmethod
    def parse_shape(cls, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Check the shape of one input, without the batch axis; by default any will do."""
        return tuple(input_shape)


def _image_shape(owner: str, input_shape: Sequence[int]) -> tuple[int, ...]:
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ShapeError(f"{owner}: input_shape must be (channels, height, width), got {tuple(input_shape)}")
    return tuple(input_shape)


@final
class SmallConv(Backbone):
    """A few convolutions and one linear layer, for small images.

    Each convolutional stage is a 3 x 3 convolution, batch normalization, ReLU and 2 x 2 max pooling; the last stage
    flattens, so that positions stay apart, and maps to ``hidden`` features with ReLU and dropout.

    Args:
        input_shape: (channels, height, width) of one image.
        widths: Channels of the convolutional stages.
        hidden: Number of features.
        norm: Batch normalization after each convolution.
        dropout: Share of the features that dropout zeroes, in [0, 1).
    """

    key = "small_conv"
    source = "in the manner of LeNet-5; LeCun et al., Proceedings of the IEEE 1998"

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        widths: tuple[int, ...] = (16, 32),
        hidden: int = 64,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = self.parse_shape(input_shape)
        check_range("SmallConv: dropout", dropout, low=0.0, high=1.0, high_open=True)
        check_integer("SmallConv: hidden", hidden, low=1)
        for out in widths:
            check_integer("SmallConv: each of widths", out, low=1)
        if not widths or min(height, width) < 2 ** len(widths):
            raise OptionError(
                f"SmallConv: {len(widths)} stages of pooling need an image of at least {2 ** len(widths)} pixels a "
                f"side and one stage at least, got {height} x {width}"
            )
        self.stages = nn.ModuleList()
        for out in widths:
            layers = [nn.Conv2d(channels, out, 3, padding=1, bias=not norm)]
            layers += [nn.BatchNorm2d(out)] if norm else []
            self.stages.append(nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2)))
            channels, height, width = out, height // 2, width // 2
        last = [nn.Flatten(), nn.Linear(channels * height * width, hidden), nn.ReLU()]
        self.stages.append(nn.Sequential(*last, nn.Dropout(dropout)))
        self.channels = (*widths, hidden)

    @classmethod
    def parse_shape(cls, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Check the shape of one input."""
        return _image_shape("SmallConv", input_shape)


@final
class MLP(Backbone):
    """Linear layers with ReLU; inputs of any shape are flattened.

    Args:
        input_shape: Shape of one input, without the batch axis.
        widths: Width of each layer.
        dropout: Share of the features that dropout zeroes after each layer, in [0, 1).
    """

    key = "mlp"
    source = "textbook"

    def __init__(
        self, input_shape: Sequence[int], *, widths: tuple[int, ...] = (256, 256), dropout: float = 0.0
    ) -> None:
        super().__init__()
        size = prod(self.parse_shape(input_shape))
        check_range("MLP: dropout", dropout, low=0.0, high=1.0, high_open=True)
        if not widths:
            raise OptionError("MLP: widths must have at least one layer")
        for width in widths:
            check_integer("MLP: each of widths", width, low=1)
        self.stages = nn.ModuleList()
        for index, width in enumerate(widths):
            first = [nn.Flatten()] if index == 0 else []
            self.stages.append(nn.Sequential(*first, nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)))
            size = width
        self.channels = tuple(widths)

    @classmethod
    def parse_shape(cls, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Check the shape of one input."""
        if not input_shape or min(input_shape) < 1:
            raise ShapeError(f"MLP: input_shape must have at least one axis, got {tuple(input_shape)}")
        return tuple(input_shape)


@final
class ResNet18(Backbone):
    """torchvision's ResNet-18 without its classifier; needs the extra ``vision``.

    The stages are the stem and the four groups of residual blocks. For another number of channels than 3 the first
    convolution is made anew.

    Args:
        input_shape: (channels, height, width) of one image.
        pretrained: Load torchvision's ImageNet weights (downloaded by torchvision on first use).
        small_images: A 3 x 3 stem with stride 1 and without pooling, as is usual for images of about 32 pixels.
        width: Channels of the stem and the first group, 64 in the paper; every further group doubles it.

    Raises:
        OptionError: If pretrained weights are asked for at another width.
    """

    key = "resnet18"
    source = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385"

    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        pretrained: bool = False,
        small_images: bool = False,
        width: int = _RESNET_WIDTH,
    ) -> None:
        super().__init__()
        channels = self.parse_shape(input_shape)[0]
        check_integer("ResNet18: width", width, low=1)
        if pretrained and width != _RESNET_WIDTH:
            raise OptionError(f"ResNet18: pretrained weights are of width {_RESNET_WIDTH}, got width={width}")
        models: Any = require("torchvision.models", extra="vision")
        net = models.resnet18(weights=models.ResNet18_Weights.IMAGENET1K_V1 if pretrained else None)
        if width != _RESNET_WIDTH:
            _narrow(net, width)
        if small_images:
            net.conv1 = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
            net.maxpool = nn.Identity()
        elif channels != 3 or width != _RESNET_WIDTH:
            net.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        if small_images or channels != 3 or width != _RESNET_WIDTH:
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([stem, net.layer1, net.layer2, net.layer3, net.layer4])
        self.channels = (width, width, 2 * width, 4 * width, 8 * width)

    @classmethod
    def parse_shape(cls, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Check the shape of one input."""
        return _image_shape("ResNet18", input_shape)


def _narrow(net: Any, width: int) -> None:
    """Replace the groups of torchvision's ResNet-18, which has one width only, by narrower ones."""
    block = type(net.layer1[0])
    net.bn1 = nn.BatchNorm2d(width)
    net.inplanes = width
    for group, stride in enumerate((1, 2, 2, 2)):
        layers = net._make_layer(block, width * 2**group, 2, stride=stride)  # torchvision makes its own groups with it
        for module in layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        setattr(net, f"layer{group + 1}", layers)
