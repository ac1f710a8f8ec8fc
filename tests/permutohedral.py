"""The permutohedral lattice again, in NumPy with a dictionary of coordinates: slow, independent."""

import numpy as np


class DictionaryLattice:
    """Of (P, d) features in units of sigma, in float64."""

    def __init__(self, features: np.ndarray) -> None:
        points, d = features.shape
        axis = np.arange(d)
        scaled = features * (d + 1) * np.sqrt(2 / 3) / np.sqrt((axis + 1) * (axis + 2))
        # The sum from axis j on, minus j times axis j - 1. Added up from the end, so that features
        # of 0 give ties, which matter: they decide which vertices exist.
        sums = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]
        self.elevated = np.pad(sums, ((0, 0), (0, 1)))
        self.elevated[:, 1:] -= (axis + 1) * scaled
        self.corners = np.zeros((points, d + 1, d + 1), dtype=np.int64)
        self.weights = np.zeros((points, d + 1))
        for p, y in enumerate(self.elevated):
            self.corners[p] = self._enclosing_simplex(y)
            system = np.vstack([self.corners[p].T, np.ones(d + 1)])
            target = np.append(y, 1.0)
            self.weights[p] = np.linalg.lstsq(system, target, rcond=None)[0]
        self.number = {}
        for vertex in self.corners.reshape(-1, d + 1):
            self.number.setdefault(tuple(vertex), len(self.number))
        self.d = d

    @staticmethod
    def _enclosing_simplex(y: np.ndarray) -> np.ndarray:
        """The closest 0-coloured vertex, then steps along the axes in falling order of residue."""
        n = len(y)
        start = np.rint(y / n) * n
        order = np.argsort(-(y - start), kind="stable")
        surplus = round(start.sum() / n)
        if surplus > 0:
            start[order[n - surplus :]] -= n
        elif surplus < 0:
            start[order[:-surplus]] += n
        order = np.argsort(-(y - start), kind="stable")
        corners = [start + k for k in range(n)]
        for k in range(1, n):
            corners[k][order[n - k :]] -= n
        return np.array(corners, dtype=np.int64)

    def splat_matrix(self) -> np.ndarray:
        """(M, P)."""
        matrix = np.zeros((len(self.number), len(self.weights)))
        for p, (corners, weights) in enumerate(zip(self.corners, self.weights, strict=True)):
            for corner, weight in zip(corners, weights, strict=True):
                matrix[self.number[tuple(corner)], p] += weight
        return matrix

    def blur_matrix(self) -> np.ndarray:
        """(M, M): axis 0 first."""
        size = len(self.number)
        total = np.eye(size)
        for axis in range(self.d + 1):
            step = -np.ones(self.d + 1, dtype=np.int64)
            step[axis] += self.d + 1
            blur = np.eye(size)
            for vertex, row in self.number.items():
                for sign in (1, -1):
                    other = self.number.get(tuple(np.array(vertex) + sign * step))
                    if other is not None:
                        blur[row, other] += 0.5
            total = blur @ total
        return total

    def operator(self) -> np.ndarray:
        """A, (P, P)."""
        splat = self.splat_matrix()
        return splat.T @ self.blur_matrix() @ splat / (1 + 2.0**-self.d)


def bilateral_features(image: np.ndarray, sigma_rgb: float, sigma_xy: float) -> np.ndarray:
    """(C, H, W) to (P, 2 + C) in float64."""
    _, height, width = image.shape
    y, x = np.mgrid[:height, :width]
    planes = [x / sigma_xy, y / sigma_xy, *(image.astype(np.float64) / sigma_rgb)]
    return np.stack([plane.ravel() for plane in planes], axis=1)


def gaussian_matrix(features: np.ndarray) -> np.ndarray:
    """exp(-|f_i - f_j|^2 / 2), (P, P)."""
    squared = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    return np.exp(-0.5 * squared)
