"""Dense CRF on the permutohedral lattice."""
from . import reference, registration  # noqa: F401
