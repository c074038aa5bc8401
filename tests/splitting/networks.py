"""The networks that splitting must take unchanged, on small inputs; one row each."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

NOISE = [("Dropout", "p"), ("DropPath", "drop_prob"), ("StochasticDepth", "p"), ("MultiheadAttention", "dropout")]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its input, and the layers that tests split in it; ``needs``: the package that has it."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    needs: str | None = None
    integers: int | None = None  # the input is of whole numbers below this

    def input(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.integers:
            return torch.randint(self.integers, self.shape, generator=generator)
        return torch.randn(self.shape, dtype=torch.float64, generator=generator)

    def network(self) -> nn.Module:
        """Build it in float64, without dropout and stochastic depth, every parameter away from 0."""
        torch.manual_seed(0)
        network = self.build().double()
        for module in network.modules():
            for kind, attribute in NOISE:
                if type(module).__name__ == kind:
                    setattr(module, attribute, 0.0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return network


class Encoder(nn.Module):
    """Two transformer layers on token vectors, the first token read out."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(x)[:, 0])


class TextClassifier(nn.Module):
    """Embedding, bidirectional LSTM of two layers, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        output, (hidden, _) = self.lstm(self.embedding(x))
        return self.head(output.mean(dim=1) + torch.cat([hidden[-2], hidden[-1]], dim=1))


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SegNet(nn.Module):
    """Pooling with indices and unpooling by them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 8), block(8, 16)])
        self.up = nn.ModuleList([block(16, 8), block(8, 8)])
        self.head = nn.Conv2d(8, 4, 1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        indices = []
        for stage in self.down:
            x, where = self.pool(stage(x))
            indices.append(where)
        for stage in self.up:
            x = stage(self.unpool(x, indices.pop()))
        return {"scores": self.head(x), "last": (x, [x.mean()])}


class UNet(nn.Module):
    """Skip connections by concatenation, upsampling by function, one in-place sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = block(3, 8), block(8, 8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.join, self.head = block(24, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.stem(x)
        x = F.max_pool2d(skip, 2)
        x += self.deep(x.clone())
        wide = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.join(torch.cat([skip, wide, self.up(x)], dim=1)))


def torchvision_model(name: str, **options):
    import torchvision

    return lambda: getattr(torchvision.models, name)(num_classes=4, **options)


def timm_model(name: str, **options):
    def build():
        import timm

        return timm.create_model(name, num_classes=4, **options)

    return build


def mobilenet_raspp() -> nn.Module:
    import torchvision
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.lraspp import LRASPP

    features = torchvision.models.mobilenet_v2().features
    return LRASPP(IntermediateLayerGetter(features, {"3": "low", "17": "high"}), 24, 320, num_classes=4)


def deeplab() -> nn.Module:
    import torchvision

    make = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large
    return make(weights_backbone=None, num_classes=4, aux_loss=True)


IMAGE = (3, 3, 32, 32)
CASES = [
    Case("segnet", SegNet, (2, 3, 16, 16)),
    Case("unet", UNet, (2, 3, 16, 16)),
    Case("transformer", Encoder, (3, 5, 16)),
    Case("transformer_norm_first", lambda: Encoder(norm_first=True), (3, 5, 16)),
    Case("lstm", TextClassifier, (3, 7), integers=20),
    Case("resnet18", torchvision_model("resnet18"), IMAGE, "torchvision"),
    Case("mobilenet_v2_raspp", mobilenet_raspp, (2, 3, 64, 64), "torchvision"),
    Case("deeplabv3", deeplab, (2, 3, 64, 64), "torchvision"),
    Case("resnet50", timm_model("resnet50"), IMAGE, "timm"),
    Case("convnext_atto", timm_model("convnext_atto"), IMAGE, "timm"),
    Case("efficientnet_b0", timm_model("efficientnet_b0"), IMAGE, "timm"),
    Case("vit_tiny", timm_model("vit_tiny_patch16_224", img_size=32), (2, 3, 32, 32), "timm"),
    Case("swin_tiny", timm_model("swin_tiny_patch4_window7_224", img_size=56), (2, 3, 56, 56), "timm"),
    Case("hrnet_w18_small", timm_model("hrnet_w18_small"), (2, 3, 64, 64), "timm"),
    Case("mixer", timm_model("mixer_s32_224", img_size=64), (2, 3, 64, 64), "timm"),
]
