"""Recurrent visual attention: a few glimpses of an image, each chosen after the earlier ones.

Mnih et al., "Recurrent Models of Visual Attention" (1406.6247). Nothing attends to the whole image,
so the cost of a classification is that of its glimpses, whatever the size of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import checks
from ..nn import inputs, score_function_loss
from ..ops.seed import saved


class Glimpses(NamedTuple):
    """The result of `RecurrentAttentionModel`, T being the number of glimpses.

    Attributes:
        logits: (B, classes), after the last glimpse.
        locations: (B, T, 2), the centres of the glimpses as (x, y): (-1, -1) is the upper left
            corner of the image, (1, 1) the lower right one. The first is (0, 0).
        log_prob: (B, T - 1), the log-density of each chosen location.
        baseline: (B, T - 1), the reward expected before each choice.
    """

    logits: Tensor
    locations: Tensor
    log_prob: Tensor
    baseline: Tensor


def glimpse(images: Tensor, locations: Tensor, size: int, scales: int = 1) -> Tensor:
    """Return square windows, the wider the coarser: the glimpse sensor (sections 3.1 and 4).

    The window of scale k is ``size * 2**k`` pixels wide and mean-pooled to ``size``. Pixels outside
    the image are 0. A window whose edges fall between pixels is interpolated bilinearly. The result
    has gradients for images and locations; the paper does not use the latter.

    Args:
        images: (B, C, H, W), floating.
        locations: (B, 2), in images' dtype: the centre of the windows, as in `Glimpses`.
        size: pixels per side of the result, at least 1.
        scales: number of windows, at least 1.

    Returns:
        (B, scales, C, size, size), the finest scale first.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    size, scales = inputs.sizes(size=size, scales=scales)
    check_images(images, None)
    checks.tensor("locations", locations, "(B, 2)", (images.shape[0], 2), (images.dtype,))
    height, width = images.shape[-2:]
    seen = []
    for scale in (2**k for k in range(scales)):
        side = size * scale
        zoom = images.new_tensor([[side / width, 0.0], [0.0, side / height]])
        window = torch.cat([zoom.expand(images.shape[0], 2, 2), locations.unsqueeze(-1)], -1)
        shape = [*images.shape[:2], side, side]
        grid = F.affine_grid(window, shape, align_corners=False)
        crop = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        seen.append(F.avg_pool2d(crop, scale))
    return torch.stack(seen, 1)


class RecurrentAttentionModel(nn.Module):
    """A classifier that looks `glimpses` times (sections 3.1 and 4, figure 1).

        g_t = relu(W relu(W sensor(image, l_t)) + W relu(W l_t))     the glimpse network
        h_t = relu(W h_{t-1} + W g_t)                                the core
        l_{t+1} ~ Normal(tanh(W h_t), std)                           the location network

    The logits are a linear map of the last h, and all W have a bias. In training locations are
    drawn; in `eval` mode they are the means. No gradient passes through a location: the location
    network, and through h_t the rest, learn from it by the score function (`hybrid_loss`). Two
    choices that the paper leaves open: the first location is the centre of the image, and tanh
    keeps the means inside it.

    Args:
        classes: number of classes.
        channels: channels of an image.
        size: width of the finest window in pixels (in the paper 8 for 28x28 images, 12 for 60x60).
        scales: windows per glimpse (in the paper 1; 3 or 4 for translated digits).
        glimpses: number of glimpses, at least 1 (in the paper 2 to 8).
        features: width of relu(W sensor) and of relu(W l); g_t is twice as wide (in the paper 128).
        hidden: features of the core (in the paper 256).
        std: standard deviation of the policy, in units of half an image; positive and finite.

    Raises:
        TypeError: ``std`` is not a number.
        ValueError: a size is not a positive int, or ``std`` is not positive and finite.
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: int = 1,
        size: int = 8,
        scales: int = 3,
        glimpses: int = 6,
        features: int = 128,
        hidden: int = 256,
        std: float = 0.15,
    ) -> None:
        super().__init__()
        classes, channels, size, scales = inputs.sizes(
            classes=classes, channels=channels, size=size, scales=scales
        )
        glimpses, features, hidden = inputs.sizes(
            glimpses=glimpses, features=features, hidden=hidden
        )
        std = checks.number("std", std)
        if std <= 0:
            raise ValueError(f"std must be positive, got {std}")
        self.channels, self.size, self.scales = channels, size, scales
        self.glimpses, self.std = glimpses, std
        self.what = nn.Linear(scales * channels * size**2, features)
        self.where = nn.Linear(2, features)
        self.glimpse_from_what = nn.Linear(features, 2 * features)
        self.glimpse_from_where = nn.Linear(features, 2 * features)
        self.core = nn.RNNCell(2 * features, hidden, nonlinearity="relu")
        self.locator = nn.Linear(hidden, 2)
        self.baseline = nn.Linear(hidden, 1)
        self.classifier = nn.Linear(hidden, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all parameters.

        Layers before a relu are He's (1502.01852), the core's recurrence is the identity (Le et
        al., 1504.00941), and the three heads are small.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for head in (self.locator, self.baseline, self.classifier):
            nn.init.normal_(head.weight, std=0.01)
        nn.init.kaiming_normal_(self.core.weight_ih, nonlinearity="relu")
        nn.init.eye_(self.core.weight_hh)
        nn.init.zeros_(self.core.bias_ih)
        nn.init.zeros_(self.core.bias_hh)

    @property
    def windows(self) -> list[int]:
        """Width of each scale's window, in pixels."""
        return [self.size * 2**k for k in range(self.scales)]

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Glimpses:
        """Look at images and classify them.

        Args:
            images: (B, channels, H, W), in the parameters' dtype.
            generator: draws the locations in training; torch's own by default.

        Raises:
            TypeError, ValueError: images does not fit.
        """
        check_images(images, self.channels)
        location = images.new_zeros(images.shape[0], 2)
        state = images.new_zeros(images.shape[0], self.core.hidden_size)
        locations, means, baselines = [location], [], []
        for t in range(self.glimpses):
            state = self.core(self.glimpse_network(images, location), state)
            if t + 1 == self.glimpses:
                break
            mean = torch.tanh(self.locator(state))
            location = mean.detach()
            if self.training:
                noise = torch.randn(mean.shape, generator=generator, device=mean.device)
                location = location + self.std * saved(noise).to(mean)
            locations.append(location)
            means.append(mean)
            baselines.append(self.baseline(state.detach()).squeeze(-1))
        logits = self.classifier(state)
        if not means:
            none = logits.new_zeros(images.shape[0], 0)
            return Glimpses(logits, torch.stack(locations, 1), none, none)
        chosen = torch.stack(locations, 1)
        policy = torch.distributions.Normal(torch.stack(means, 1), self.std)
        log_prob = policy.log_prob(chosen[:, 1:]).sum(-1)
        return Glimpses(logits, chosen, log_prob, torch.stack(baselines, 1))

    def glimpse_network(self, images: Tensor, location: Tensor) -> Tensor:
        """Return g_t (B, 2 * features), which combines what is seen with where."""
        seen = glimpse(images, location, self.size, self.scales).flatten(1)
        what, where = self.what(seen).relu(), self.where(location).relu()
        return (self.glimpse_from_what(what) + self.glimpse_from_where(where)).relu()

    if TYPE_CHECKING:
        __call__ = forward


def hybrid_loss(result: Glimpses, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three losses of section 3.2, each a mean over the batch; train with their sum.

    The cross-entropy of the labels (the paper's hybrid supervised loss) teaches the classifier, the
    core and the glimpse network. The score-function loss, summed over the choices, teaches the
    locator, the core and the glimpse network: the reward is 1 if the likeliest class is the label,
    otherwise 0. The squared error of the expected reward teaches the baseline alone.

    Args:
        result: the result of a model in training.
        labels: (B,), int64, the classes.

    Returns:
        The cross-entropy, the score-function loss and the squared error, each ().
    """
    reward = (result.logits.argmax(-1) == labels).to(result.logits.dtype).unsqueeze(-1)
    policy = score_function_loss(result.log_prob, reward, result.baseline).sum(-1).mean()
    regression = (result.baseline - reward).square().sum(-1).mean()
    return F.cross_entropy(result.logits, labels), policy, regression


def check_images(images: Tensor, channels: int | None) -> None:
    """Raise unless images is floating (B, C, H, W), with this number of channels if not None."""
    checks.tensor("images", images, "(B, C, H, W)", (None, channels, None, None))
    if not images.is_floating_point():
        raise TypeError(f"images must be floating, got {images.dtype}")
