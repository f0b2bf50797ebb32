"""Cards: does it fit, and how long does it take at a stated share of the card's rate."""

from dataclasses import dataclass

from open_supir.training.monitoring import PEAK_TFLOPS

GB = 10**9
# memory in GB -> a card of that size, whose rate counts
CARDS = {
    8: "RTX 4060", 12: "RTX 4070", 16: "RTX 4080", 24: "RTX 4090", 48: "RTX A6000", 80: "H100",
    141: "H200",
}  # fmt: skip
# dense bf16 TFLOP/s; of the small ones twice their float32 rate, as of the RTX 4090
RATES = PEAK_TFLOPS | {"RTX 4060": 30.2, "RTX 4070": 58.3, "RTX 4080": 97.5}
LEAST = 24  # smaller ones are told of only where they are asked for
USABLE = 0.95  # share of the memory; the rest is for CUDA itself and fragmentation


@dataclass(frozen=True)
class Card:
    """A card by its memory.

    Raises:
        ValueError: No card of that size is known, or `mfu` is no share.
    """

    memory: int  # GB
    mfu: float = 0.4  # share of the card's bf16 rate that is reached

    def __post_init__(self) -> None:
        if self.memory not in CARDS:
            known = ", ".join(map(str, CARDS))
            raise ValueError(f"device_memory={self.memory}: known are {known} (GB)")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu}: expected a share above 0, at most 1, such as 0.4")

    @property
    def usable(self) -> float:
        """Bytes that tensors may take."""
        return self.memory * GB * USABLE

    def seconds(self, flops: float) -> float:
        """Return how long these operations take."""
        return flops / (RATES[CARDS[self.memory]] * 1e12 * self.mfu)

    def fits(self, micro_batch: int, peak: float, a_crop: float) -> str:
        """Say whether a step fits, else how many crops would.

        Args:
            peak: Bytes at `micro_batch` crops.
            a_crop: Bytes of each crop.
        """
        if peak <= self.usable:
            return "yes"
        crops = int(micro_batch - (peak - self.usable) / a_crop) if a_crop else 0
        return f"micro_batch={2 ** (crops.bit_length() - 1)}" if crops > 0 else "no"


def cards(memory: int | None, mfu: float) -> list[Card]:
    """Return the card of that size in GB, or all from `LEAST` on."""
    sizes = [size for size in CARDS if size >= LEAST] if memory is None else [memory]
    return [Card(size, mfu) for size in sizes]
