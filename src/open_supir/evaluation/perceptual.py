"""LPIPS as a loss: the network and weight files of the metric, with a gradient to the picture."""

from torch import Tensor, nn

from open_supir.evaluation.metrics import check_weights


class LpipsDistance(nn.Module):
    """LPIPS (arXiv:1801.03924) with VGG, by torchmetrics; frozen.

    Raises:
        FileNotFoundError: Weights are missing; the message names files and sources.
    """

    def __init__(self) -> None:
        super().__init__()
        check_weights([], require=["lpips_vgg"])
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        self.net = LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the distances (B,) of images (B, 3, H, W) in [-1, 1]."""
        return self.net(image, reference).flatten()
