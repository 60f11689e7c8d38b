"""A detector as explanations read it: the class logits of one fixed box."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convatlas.core.network import Network, feature_map, is_chain, is_overwritten, tap_paths
from convatlas.core.preprocessing import Preprocessing
from convatlas.core.ragged import Inputs, to_device
from convatlas.tasks.explained import Explained

if TYPE_CHECKING:
    from convatlas.models.detection.network import RCNN

Box = tuple[float, float, float, float]

HEAD = "head"


class ExplainedBox(Explained):
    """A detector as a function from images of one size to the class logits of a box, (n, 1 + classes).

    The box stays where it is, so that the logits depend smoothly on the image: neither proposals nor the suppression of
    overlapping objects are computed.
    box: in pixels of the image: left, top, right, bottom. size: (height, width) of the image.
    """

    network: RCNN

    def __init__(self, network: Network, preprocessing: Preprocessing, box: Box, size: tuple[int, int]) -> None:
        super().__init__(network, preprocessing)
        self.size = size
        self.box = torch.tensor([box], device=self.device)

    def inputs(self, pixels: Inputs) -> Tensor:
        """Return whole images of one size as (n, channels, h, w) from 0 to 1; the network resizes them."""
        return torch.stack(self.preprocessing.normalize(to_device(list(pixels), self.device)))

    def baseline(self, inputs: Tensor) -> Tensor:
        """Return images of the mean color, which the transform subtracts."""
        mean: Any = self.network.transform.image_mean
        return torch.tensor(mean, device=inputs.device, dtype=inputs.dtype).view(1, -1, 1, 1).expand_as(inputs)

    def outputs(self, inputs: Any) -> Tensor:
        batch = self._resized(inputs)
        return self._logits(batch, self.network.maps(batch.tensors), inputs)

    def capture(
        self, inputs: Any, paths: Sequence[str], visit: Callable[[str, Tensor], None] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        self.check_paths(paths)
        maps: dict[str, Tensor] = {}
        levels: list[Tensor] = []
        with torch.no_grad():
            batch = self._resized(inputs)
            x: Any = batch.tensors
            for leaf, *chains in self._ends():
                with torch.set_grad_enabled(bool(maps)):
                    x = self.network.get_submodule(leaf)(x)
                for path in (leaf, *chains):
                    if visit is not None:
                        visit(path, feature_map(x).detach())
                    if path in paths:
                        maps[path], x = self._captured(x, path, is_first=not maps)
                with torch.set_grad_enabled(bool(maps)):
                    if not {leaf, *chains}.isdisjoint(self.network.levels):
                        level = feature_map(x)
                        levels.append(level.clone() if is_overwritten(self.network, leaf) else level)
        with torch.enable_grad():
            return {path: maps[path] for path in paths}, self._logits(batch, levels, inputs)

    def on_view(self, maps: Tensor, pixels: Inputs) -> Tensor:
        """Return maps (n, *space) over the padded, resized images, or over the images, as (n, h, w) over `pixels`."""
        height, width = pixels[0].shape[-2:]
        if maps.shape[1:] == (height, width):
            return maps
        batch = self._resized(self.inputs(pixels[:1]))
        rows, columns = batch.image_sizes[0]
        whole = F.interpolate(maps[:, None], batch.tensors.shape[-2:], mode="bilinear", align_corners=False)
        return F.interpolate(whole[..., :rows, :columns], (height, width), mode="bilinear", align_corners=False)[:, 0]

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The taps of the body; the head reads several of its maps."""
        body = [path for path in tap_paths(self.network) if path != HEAD]
        return tuple(path for path in body if len(self.shapes[path]) == len(self.network.input_shape))

    @property
    def default_layer(self) -> str:
        """The level of the body whose map the region of the box is pooled from (Lin et al. 2017, equation 1).

        Deeper layers reach a small box only through the pyramid, and their maps show other places.
        """
        from torchvision.models.detection.transform import resize_boxes

        resized = self._resized(torch.zeros(1, self.network.input_shape[0], *self.size, device=self.device))
        heads: Any = self.network.head.roi_heads
        level = heads.box_roi_pool.map_levels([resize_boxes(self.box, self.size, resized.image_sizes[0])])
        return self.network.levels[int(level)]

    def _ends(self) -> Iterator[list[str]]:
        """Yield each layer of the body with the chains that end with it."""
        ends: list[str] = []
        for path in tap_paths(self.network):
            if ends and not is_chain(self.network.get_submodule(path)):
                yield ends
                ends = []
            ends.append(path)

    def _resized(self, inputs: Tensor) -> Any:
        """Return the images as the transform resizes, standardizes and pads them: an `ImageList`."""
        return self.network.transform(list(inputs))[0]

    def _logits(self, batch: Any, maps: Sequence[Tensor], inputs: Tensor) -> Tensor:
        number, (height, width) = len(inputs), inputs.shape[-2:]
        return self.network.box_logits(batch, maps, [self.box] * number, [(height, width)] * number).float()
