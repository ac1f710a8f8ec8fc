"""Room `crf`: the lattice and its filter against a NumPy lattice, geometry and known limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import wsfast
from tests.crf_inputs import relative
from tests.permutohedral import DictionaryLattice, gaussian_matrix
from wsfast.ops.crf import reference
from wsfast.testing import FLOATING_DTYPES

OPS = torch.ops.wsfast
DIRECTIONS = ("forward", "transpose", "symmetric")
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def cloud(d: int, points: int = 150, spread: float = 1.5) -> torch.Tensor:
    return torch.randn(1, d, points, dtype=torch.float64) * spread


@pytest.mark.parametrize("d", range(1, 9))
def test_matches_the_numpy_lattice(device: torch.device, d: int) -> None:
    features, values = cloud(d, 90), torch.randn(1, 3, 90, dtype=torch.float64)
    dictionary = DictionaryLattice(features[0].T.numpy())
    operator = torch.from_numpy(dictionary.operator())
    for dtype in (torch.float32, torch.float64):
        lattice = wsfast.Lattice(features.to(device, dtype))
        assert lattice.num_vertices.tolist() == [len(dictionary.number)]
        x = values.to(device, dtype)
        for matrix, direction in zip((operator, operator.T), DIRECTIONS, strict=False):
            found = lattice.apply(x, direction)[0].cpu()
            assert relative(found.T, matrix @ values[0].T) < PRECISION[dtype]
        mean = wsfast.lattice_filter(x, lattice)[0].cpu()
        assert relative(mean.T, 0.5 * (operator + operator.T) @ values[0].T) < PRECISION[dtype]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("d", [1, 2, 5, 8])
def test_forward_matches_reference(device: torch.device, d: int, dtype: torch.dtype) -> None:
    """Vertices are numbered by key in both, but a key's axes may be packed in another order."""
    features = (torch.randn(3, d, 301) * 2).to(device)  # the same on every device
    for channels in (1, 2, 5, 21):
        values = torch.randn(3, channels, 301, device=device).to(dtype)
        ours = wsfast.Lattice(features.to(dtype))
        theirs = reference.build_lattice(features.to(dtype))
        torch.testing.assert_close(ours.offsets, theirs[3])
        torch.testing.assert_close(ours.weights, theirs[1], rtol=0, atol=1e-5)
        for direction in DIRECTIONS:
            found = ours.apply(values, direction)
            wanted = reference.lattice_filter(values, *theirs, direction)
            assert found.dtype == dtype
            assert relative(found, wanted) < PRECISION[dtype]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("d", [2, 5, 8])
def test_energies_match_reference(device: torch.device, d: int, dtype: torch.dtype) -> None:
    tensors = OPS.build_lattice((torch.randn(3, d, 301, device=device) * 2).to(dtype))
    for channels in (1, 2, 5, 21):
        values = torch.randn(3, channels, 301, device=device).to(dtype)
        for direction in DIRECTIONS:
            arguments = (values, *tensors, direction)
            energy, filtered = OPS.lattice_energy(*arguments, True)
            wanted = reference.lattice_energy(*arguments, True)
            assert energy.dtype == reference.accumulate_dtype(dtype)
            torch.testing.assert_close(energy, wanted[0], rtol=1e-4, atol=1e-3)
            assert torch.equal(filtered, OPS.lattice_filter(*arguments))
            alone, nothing = OPS.lattice_energy(*arguments, False)
            assert torch.equal(alone, energy)
            assert nothing.shape == (0,)


@pytest.mark.parametrize("d", range(1, 9))
def test_simplex(d: int) -> None:
    """Weights are a partition of unity, interpolate the point, and colours are in order."""
    features = cloud(d, 400, spread=20.0)
    lattice = wsfast.Lattice(features)
    assert (lattice.weights.sum(dim=2) - 1).abs().max() < 1e-12
    assert lattice.weights.min() > -1e-12
    scale = reference.elevation_scales(d)
    elevated = reference.elevate(features[0].T, scale)
    quotient, rank, weights = reference.find_simplex(elevated)
    corners = reference.corner_coordinates(quotient, rank)
    assert torch.equal(corners.sum(dim=2), torch.zeros_like(corners[..., 0]))
    assert torch.equal(corners % (d + 1), torch.arange(d + 1)[:, None].expand_as(corners))
    point = (weights[:, :, None] * corners).sum(dim=1)
    torch.testing.assert_close(point, elevated, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lattice.weights[0], weights, rtol=0, atol=1e-11)
    position = reference.vertex_positions(
        features[0].T, lattice.vertices[0], int(lattice.num_vertices)
    )
    inside = (lattice.weights[0, :, :, None] * position[lattice.vertices[0].long()]).sum(dim=1)
    torch.testing.assert_close(inside, features[0].T, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("d", "ratio"), [(2, 0.882), (3, 0.829), (5, 0.7055)])
def test_mass_on_a_dense_cloud(d: int, ratio: float) -> None:
    """Row sums against the Gaussian's, where every vertex is populated."""
    torch.manual_seed(1)
    side, count = 8.0, {2: 60_000, 3: 200_000, 5: 1_200_000}[d]
    features = torch.rand(1, d, count) * side
    degree = wsfast.Lattice(features).degree(torch.float32, "symmetric")[0, 0]
    inner = ((features[0] - side / 2).abs() < 1.0).all(dim=0)
    whole = count / side**d * (2 * math.pi) ** (d / 2)  # the Gaussian's mass in the open
    assert float(degree[inner].mean()) / whole == pytest.approx(ratio, rel=0.02)


def test_adjoint() -> None:
    for d in (1, 3, 5, 7):
        lattice = wsfast.Lattice(cloud(d, 400))
        x, y = torch.randn(2, 1, 2, 400, dtype=torch.float64)
        forward, transpose = lattice.apply(x, "forward"), lattice.apply(y, "transpose")
        scale = x.norm() * y.norm()
        assert abs((forward * y).sum() - (x * transpose).sum()) < 1e-12 * scale
        both = [(wsfast.lattice_filter(a, lattice) * b).sum() for a, b in ((x, y), (y, x))]
        assert abs(both[0] - both[1]) < 1e-12 * scale
    assert d == 7
    assert relative(lattice.apply(x, "forward"), lattice.apply(x, "transpose")) > 1e-3


def test_normalization() -> None:
    lattice = wsfast.Lattice(cloud(4, 300))
    values = torch.rand(1, 2, 300, dtype=torch.float64)
    ones = torch.ones_like(values)
    filtered = wsfast.lattice_filter(values, lattice)
    degree = wsfast.lattice_filter(ones, lattice)
    assert filtered.min() >= 0
    after = wsfast.lattice_filter(values, lattice, normalize="after")
    torch.testing.assert_close(after, filtered / degree)
    torch.testing.assert_close(wsfast.lattice_filter(ones, lattice, normalize="after"), ones)
    root = degree.sqrt()
    wanted = wsfast.lattice_filter(values / root, lattice) / root
    torch.testing.assert_close(
        wsfast.lattice_filter(values, lattice, normalize="symmetric"), wanted
    )


def test_normalization_of_half_types_beyond_their_range() -> None:
    """W x leaves float16 before it is divided, and is rounded once."""
    lattice = wsfast.bilateral_lattice(torch.zeros(1, 3, 224, 224), sigma_rgb=15.0, sigma_xy=100.0)
    values = (torch.rand(1, 1, 224, 224) * 8).half()
    for normalize in ("after", "symmetric"):
        found = wsfast.lattice_filter(values, lattice, normalize=normalize)
        wanted = wsfast.lattice_filter(values.float(), lattice, normalize=normalize)
        assert torch.equal(found, wanted.half())
        assert found.isfinite().all()


def test_accuracy_against_brute_force() -> None:
    """The published bounds: 10 per cent after the best scale, 6 per cent normalised; dense 3."""
    torch.manual_seed(2)
    side = 32
    image = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 5, dtype=torch.float64) * 200, (side, side), mode="bicubic"
    )
    image += torch.randn_like(image) * 3
    lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=20.0)
    raw = reference.raw_bilateral_features(image, torch.float64)[0]
    features = raw / torch.tensor([20.0, 20.0, 15.0, 15.0, 15.0], dtype=torch.float64)
    exact = torch.from_numpy(gaussian_matrix(features.numpy()))
    values = torch.rand(1, 2, side, side, dtype=torch.float64)
    flat = values.flatten(2)
    wanted = flat @ exact
    found = wsfast.lattice_filter(values, lattice).flatten(2)
    best = (found * wanted).sum() / (found * found).sum()
    assert relative(best * found, wanted) < 0.10
    assert 1.3 < best < 2.0
    normalized = wsfast.lattice_filter(values, lattice, normalize="after").flatten(2)
    assert relative(normalized, wanted / exact.sum(dim=0)) < 0.06
    dense = OPS.gaussian_filter(flat, features.T[None], "dense")
    assert relative(dense, wanted) < 0.03
    brute = OPS.gaussian_filter(flat, features.T[None], "exact")
    assert relative(brute, wanted) < 1e-12
    assert (
        relative(OPS.gaussian_filter(flat.float(), features.T[None].float(), "exact"), wanted)
        < 1e-5
    )
    eye = torch.eye(200, dtype=torch.float64)[None]
    for method in ("dense", "exact"):
        matrix = OPS.gaussian_filter(eye, features.T[None, :, :200], method)[0]
        torch.testing.assert_close(matrix, matrix.T)
        assert torch.linalg.eigvalsh(matrix).min() > -1e-10


def test_images_do_not_mix() -> None:
    features, values = torch.randn(4, 3, 500) * 3, torch.rand(4, 2, 500)
    features[2] *= 0.01
    together = wsfast.lattice_filter(values, wsfast.Lattice(features))
    for n in range(4):
        alone = wsfast.lattice_filter(values[n : n + 1], wsfast.Lattice(features[n : n + 1]))
        assert torch.equal(together[n], alone[0])
    joint = wsfast.lattice_filter(torch.rand(4, 1, 500).expand(4, 9, 500), wsfast.Lattice(features))
    assert torch.equal(joint[:, 0], joint[:, 8])


def test_deterministic() -> None:
    """Several threads share one image's vertices (a range each, whatever colour it starts in)."""
    features, values = torch.randn(1, 4, 70_000) * 3, torch.rand(1, 3, 70_000)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        lattice = wsfast.Lattice(features)
        assert int(lattice.num_vertices) > 5 * 4096
        results.append(
            (lattice.vertices, lattice.neighbours, wsfast.lattice_filter(values, lattice))
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_deterministic_where_threads_do_not_divide_the_images() -> None:
    """Images left over have all threads each."""
    image, values = torch.rand(3, 3, 150, 160) * 255, torch.rand(3, 9, 150, 160)
    results = []
    for threads in (1, 2, 4, 5):
        torch.set_num_threads(threads)
        lattice = OPS.build_bilateral_lattice(image, [15.0] * 3, 40.0, False)
        kept = OPS.lattice_energy(values.flatten(2), *lattice, "symmetric", True)
        built = OPS.dense_crf_energy(image, values, None, [15.0] * 3, 40.0, "symmetric", True)
        results.append((*lattice, *kept, *built))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 60), st.floats(0.01, 20.0), st.floats(-500.0, 500.0),
    st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_properties(d: int, points: int, spread: float, offset: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, d, points, generator=generator, dtype=torch.float64) * spread + offset
    lattice = wsfast.Lattice(features)
    count = int(lattice.num_vertices)
    assert d + 1 <= count <= points * (d + 1)
    assert int(lattice.vertices.max()) == count - 1
    one, other = lattice.neighbours[:, 0], lattice.neighbours[:, 1]
    for axis in range(d + 1):  # neighbours are mutual
        has = one[axis] >= 0
        assert torch.equal(other[axis][one[axis][has].long()], has.nonzero()[:, 0].int())
        assert int(has.sum()) == int((other[axis] >= 0).sum())
    order = torch.randperm(points, generator=generator)
    values = torch.rand(1, 2, points, generator=generator, dtype=torch.float64)
    straight = wsfast.lattice_filter(values, lattice)
    shuffled = wsfast.lattice_filter(values[..., order], wsfast.Lattice(features[..., order]))
    torch.testing.assert_close(shuffled, straight[..., order])


def test_shift_by_a_lattice_vector() -> None:
    """Adding d + 1 to one elevated coordinate and taking it from another changes nothing."""
    d = 3
    features = cloud(d, 200)
    lattice = wsfast.Lattice(features)
    scale = torch.tensor(reference.elevation_scales(d), dtype=torch.float64)
    basis = reference.elevate(torch.eye(d, dtype=torch.float64), scale.tolist())
    target = torch.tensor([d + 1.0, 0, -(d + 1.0), 0], dtype=torch.float64)
    shift = torch.linalg.lstsq(basis.T, target).solution
    values = torch.rand(1, 2, 200, dtype=torch.float64)
    moved = wsfast.Lattice(features + shift[:, None])
    torch.testing.assert_close(
        wsfast.lattice_filter(values, moved), wsfast.lattice_filter(values, lattice)
    )


def test_gradcheck(device: torch.device) -> None:
    lattice = wsfast.Lattice(cloud(3, 20).to(device))
    values = torch.rand(1, 2, 20, dtype=torch.float64, device=device, requires_grad=True)
    for options in ({}, {"symmetric": False}, {"normalize": "after"}, {"normalize": "symmetric"}):
        call = lambda x, o=options: wsfast.lattice_filter(x, lattice, **o).square()  # noqa: E731
        assert torch.autograd.gradcheck(call, (values,))
        assert torch.autograd.gradgradcheck(call, (values,))
    for method in ("exact", "dense"):
        features = cloud(3, 20).to(device)
        smooth = lambda x, m=method, f=features: OPS.gaussian_filter(x, f, m).square()  # noqa: E731
        # The dense grid is splatted by torch's float atomics on CUDA.
        assert torch.autograd.gradcheck(smooth, (values,), nondet_tol=1e-9)
        assert torch.autograd.gradgradcheck(smooth, (values,), nondet_tol=1e-9)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: torch.device, requires_grad: bool) -> None:
    features = torch.randn(2, 3, 12, device=device)
    values = torch.rand(2, 2, 12, device=device, requires_grad=requires_grad)
    image = torch.rand(2, 3, 4, 5, device=device) * 255
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if device.type == "cpu":  # CUDA numbers vertices as threads arrive
        checks.append("test_aot_dispatch_dynamic")
    opcheck(OPS.build_lattice.default, (features,), test_utils=checks)
    bilateral = (image, [15.0] * 3, 9.0, False)
    opcheck(OPS.build_bilateral_lattice.default, bilateral, test_utils=checks)
    tensors = OPS.build_lattice(features)
    opcheck(OPS.lattice_filter.default, (values, *tensors, "forward"))
    opcheck(OPS.lattice_energy.default, (values, *tensors, "symmetric", True))
    opcheck(OPS.gaussian_filter.default, (values, features, "exact"))


def test_compile_and_export(device: torch.device) -> None:
    lattice = wsfast.Lattice(torch.randn(2, 3, 4, 5, device=device))

    def smooth(values: torch.Tensor) -> torch.Tensor:
        return wsfast.lattice_filter(values, lattice, normalize="after")

    values = torch.rand(2, 2, 4, 5, device=device, requires_grad=True)
    compiled = torch.compile(smooth, fullgraph=True)
    torch.testing.assert_close(compiled(values), smooth(values))
    (ours,) = torch.autograd.grad(compiled(values).square().sum(), values)
    torch.testing.assert_close(ours, torch.autograd.grad(smooth(values).square().sum(), values)[0])

    class Smooth(torch.nn.Module):
        def forward(self, image: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
            own = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=9.0)
            return wsfast.lattice_filter(maps, own)

    inputs = (torch.rand(2, 3, 6, 7, device=device) * 255, torch.rand(2, 2, 6, 7, device=device))
    program = torch.export.export(Smooth(), inputs)
    image, maps = torch.rand(2, 3, 6, 7, device=device) * 99, torch.rand(2, 2, 6, 7, device=device)
    torch.testing.assert_close(program.module()(image, maps), Smooth()(image, maps))


def test_export_leaves_a_kept_lattice_usable() -> None:
    lattice = wsfast.Lattice(torch.randn(2, 3, 4, 5))

    class Smooth(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return wsfast.lattice_filter(values, lattice, normalize="after")

    values = torch.rand(2, 2, 4, 5)
    program = torch.export.export(Smooth(), (values,))
    torch.testing.assert_close(program.module()(values), Smooth()(values))


def test_empty_batch_and_strides() -> None:
    empty = wsfast.Lattice(torch.rand(0, 3, 8))
    assert wsfast.lattice_filter(torch.rand(0, 2, 8), empty).shape == (0, 2, 8)
    assert empty.num_vertices.shape == (0,)
    lattice = wsfast.Lattice(torch.randn(2, 3, 6, 7))
    assert wsfast.lattice_filter(torch.rand(2, 0, 6, 7), lattice).shape == (2, 0, 6, 7)
    features = torch.randn(2, 6, 7, 3).permute(0, 3, 1, 2)
    values = torch.rand(2, 6, 7, 4).permute(0, 3, 1, 2)
    strided = wsfast.lattice_filter(values, wsfast.Lattice(features))
    plain = wsfast.lattice_filter(values.contiguous(), wsfast.Lattice(features.contiguous()))
    assert torch.equal(strided, plain)


def test_object() -> None:
    lattice = wsfast.bilateral_lattice(torch.rand(2, 1, 5, 6) * 255, sigma_rgb=[10.0], sigma_xy=4.0)
    assert lattice.spatial == (5, 6)
    assert lattice.dimension == 3
    count = lattice.neighbours.shape[2]
    assert repr(lattice) == (
        f"Lattice(images=2, points=30, dimension=3, vertices={count}, dtype=torch.float32, "
        "device='cpu')"
    )
    double = lattice.to(torch.float64)
    values = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    assert (
        relative(wsfast.lattice_filter(values, lattice), wsfast.lattice_filter(values, double)) == 0
    )
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        lattice.to(torch.float16)


def test_autocast(device: torch.device) -> None:
    lattice = wsfast.Lattice(torch.randn(1, 2, 9, device=device))
    values = torch.rand(1, 1, 9, device=device).bfloat16().requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        out = wsfast.lattice_filter(values, lattice)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert values.grad.dtype == torch.bfloat16
