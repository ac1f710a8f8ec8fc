"""Dense CRF on the permutohedral lattice."""
