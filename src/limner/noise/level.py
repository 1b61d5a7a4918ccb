"""Level: one noise level of the forward process."""

import math
from typing import NamedTuple


class Level(NamedTuple):
    """`x = alpha * x0 + sigma * eps`.

    `t` in [0, 1000] is the timestep given to the network; all sampling equations use alpha and sigma.
    """

    t: float
    alpha: float
    sigma: float

    @property
    def rho(self) -> float:
        """sigma / alpha, the noise-to-signal ratio: k-diffusion's "sigma" (Karras et al. 2022)."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """log(alpha / sigma), half the log signal-to-noise ratio (Lu et al. 2022, section 3.1)."""
        if not self.sigma:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf
