"""Recurrent visual attention: a few glimpses of an image, each chosen after those before it.

Mnih et al., "Recurrent Models of Visual Attention" (1406.6247). Nothing attends to the whole image:
the cost of a classification is that of its glimpses, whatever the size of the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import score_function_loss
from ..nn.projections import check_sizes


class Glimpses(NamedTuple):
    """What `RecurrentAttentionModel` saw and made of it, T being the number of glimpses.

    Attributes:
        logits: (B, classes), after the last glimpse.
        locations: (B, T, 2), the centres of the glimpses as (x, y): (-1, -1) is the upper left
            corner of the image, (1, 1) the lower right one. The first is (0, 0).
        log_prob: (B, T - 1), the log-density of each location that was chosen.
        baseline: (B, T - 1), the reward that was expected before each choice.
    """

    logits: Tensor
    locations: Tensor
    log_prob: Tensor
    baseline: Tensor


def glimpse(images: Tensor, locations: Tensor, size: int, scales: int = 1) -> Tensor:
    """The glimpse sensor (sections 3.1 and 4): square windows, the wider the more coarsely seen.

    The window of scale k is ``size * 2**k`` pixels wide and pooled by the mean to ``size``. What
    lies outside the image is 0. A window whose edges fall between pixels is interpolated
    bilinearly. The result has gradients for images and locations; the paper uses none for these.

    Args:
        images: (B, C, H, W), floating.
        locations: (B, 2), in images' dtype: the centre of the windows, as in `Glimpses`.
        size: pixels of a side of the result, at least 1.
        scales: how many windows, at least 1.

    Returns:
        (B, scales, C, size, size), the finest scale first.

    Raises:
        TypeError, ValueError: an argument does not fit; the message says which and how.
    """
    check_sizes(size=size, scales=scales)
    check_images(images, None)
    if locations.shape != (len(images), 2) or locations.dtype != images.dtype:
        raise ValueError(
            f"locations is {tuple(locations.shape)}, {locations.dtype}; it must be "
            f"({len(images)}, 2), {images.dtype}, as images is"
        )
    height, width = images.shape[-2:]
    seen = []
    for scale in (2**k for k in range(scales)):
        side = size * scale
        zoom = images.new_tensor([[side / width, 0.0], [0.0, side / height]])
        window = torch.cat([zoom.expand(len(images), 2, 2), locations.unsqueeze(-1)], -1)
        shape = [*images.shape[:2], side, side]
        grid = F.affine_grid(window, shape, align_corners=False)
        crop = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        seen.append(F.avg_pool2d(crop, scale))
    return torch.stack(seen, 1)


class RecurrentAttentionModel(nn.Module):
    """A classifier that looks `glimpses` times (sections 3.1 and 4; their figure 1).

        g_t = relu(W relu(W sensor(image, l_t)) + W relu(W l_t))     the glimpse network
        h_t = relu(W h_{t-1} + W g_t)                                the core
        l_{t+1} ~ Normal(tanh(W h_t), std)                           the location network

    The class is a linear map of the last h, and all W have a bias. In training locations are drawn;
    in `eval` mode they are the means. A location is a choice, through which no gradient goes: what
    chose it learns by the score function (`hybrid_loss`), the location network and through h_t what
    that was made of. What the paper leaves open: the first location is the centre of the image, and
    tanh keeps means in it.

    Args:
        classes: how many there are.
        channels: of an image.
        size: of the finest window in pixels (in the paper 8 for 28x28 images, 12 for 60x60).
        scales: how many windows a glimpse has (in the paper 1; 3 or 4 where digits are moved).
        glimpses: how many, at least 1 (in the paper 2 to 8).
        features: of relu(W sensor) and of relu(W l); g_t has twice as many (in the paper 128).
        hidden: of the core (in the paper 256).
        std: of the policy, in units of half an image; positive.

    Raises:
        ValueError: a size is not a positive int, or ``std`` is not positive.
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
        check_sizes(classes=classes, channels=channels, size=size, scales=scales)
        check_sizes(glimpses=glimpses, features=features, hidden=hidden)
        if not 0 < std < math.inf:
            raise ValueError(f"std is {std!r}; it must be positive and finite")
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
        """Draw all parameters anew: He's for what a relu follows (1502.01852), the identity for the
        core's recurrence (Le et al., 1504.00941), and small ones for the three heads."""
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
        """The width of each scale's window, in pixels."""
        return [self.size * 2**k for k in range(self.scales)]

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Glimpses:
        """Look, and say the class.

        Args:
            images: (B, channels, H, W), in the parameters' dtype.
            generator: of the locations that are drawn in training; torch's own by default.

        Raises:
            TypeError, ValueError: images does not fit; the message says how.
        """
        check_images(images, self.channels)
        location = images.new_zeros(len(images), 2)
        state = images.new_zeros(len(images), self.core.hidden_size)
        locations, means, baselines = [location], [], []
        for t in range(self.glimpses):
            state = self.core(self.glimpse_network(images, location), state)
            if t + 1 == self.glimpses:
                break
            mean = torch.tanh(self.locator(state))
            location = mean.detach()
            if self.training:
                noise = torch.randn(mean.shape, generator=generator, device=mean.device)
                location = location + self.std * noise.to(mean)
            locations.append(location)
            means.append(mean)
            baselines.append(self.baseline(state.detach()).squeeze(-1))
        logits = self.classifier(state)
        if not means:
            none = logits.new_zeros(len(images), 0)
            return Glimpses(logits, torch.stack(locations, 1), none, none)
        chosen = torch.stack(locations, 1)
        policy = torch.distributions.Normal(torch.stack(means, 1), self.std)
        log_prob = policy.log_prob(chosen[:, 1:]).sum(-1)
        return Glimpses(logits, chosen, log_prob, torch.stack(baselines, 1))

    def glimpse_network(self, images: Tensor, location: Tensor) -> Tensor:
        """g_t (B, 2 * features), of what is seen and of where."""
        seen = glimpse(images, location, self.size, self.scales).flatten(1)
        what, where = self.what(seen).relu(), self.where(location).relu()
        return (self.glimpse_from_what(what) + self.glimpse_from_where(where)).relu()


def hybrid_loss(result: Glimpses, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three losses of section 3.2, each a mean over the batch; their sum is what trains.

    The cross-entropy of the labels (their hybrid supervised loss) teaches classifier, core and
    glimpse network. The score-function loss, summed over the choices, teaches locator, core and
    glimpse network: the reward is 1 where the likeliest class is the label, else 0. The squared
    error of the reward that was expected teaches the baseline alone.

    Args:
        result: of a model in training.
        labels: (B,), int64, the classes.

    Returns:
        cross-entropy, score-function loss, squared error; each ().
    """
    reward = (result.logits.argmax(-1) == labels).to(result.logits.dtype).unsqueeze(-1)
    policy = score_function_loss(result.log_prob, reward, result.baseline).sum(-1).mean()
    regression = (result.baseline - reward).square().sum(-1).mean()
    return F.cross_entropy(result.logits, labels), policy, regression


def check_images(images: Tensor, channels: int | None) -> None:
    """Complain of images that are not floating (B, C, H, W), or of other channels."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images is {given}; it must be a floating tensor")
    if images.ndim != 4 or (channels is not None and images.shape[1] != channels):
        wanted = "C" if channels is None else channels
        raise ValueError(f"images has shape {tuple(images.shape)}; it must be (B, {wanted}, H, W)")
