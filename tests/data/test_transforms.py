import pytest
import torch
from torch.nn import functional as F

from wsfast.data import JointTransform


def coordinates(height, width):
    """An image that says of every pixel where it is."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).float()


def seeded(transform, seed, *args, **kwargs):
    torch.manual_seed(seed)
    return transform(*args, **kwargs)


@pytest.mark.parametrize("flips", ["none", "horizontal", "both"])
@pytest.mark.parametrize("seed", range(6))
def test_image_map_mask_and_boxes_get_the_same_draw(flips, seed):
    image = coordinates(40, 30)
    mask = (image[0] * 100 + image[1]).long()
    boxes = torch.tensor([[5, 6, 9, 12], [0, 0, 30, 40], [29, 39, 30, 40]])
    transform = JointTransform(crop=(24, 20), flips=flips)
    out = seeded(transform, seed, image, image.clone(), mask=mask, boxes=boxes)
    assert out.image.shape == (2, 24, 20)
    assert torch.equal(out.image, out.map)
    assert torch.equal(out.mask, (out.image[0] * 100 + out.image[1]).long())
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in zip(boxes.tolist(), out.boxes.tolist(), strict=True):
        inside = (out.image[0] >= y0) & (out.image[0] < y1)
        inside &= (out.image[1] >= x0) & (out.image[1] < x1)
        drawn = torch.zeros_like(inside)
        drawn[v0:v1, u0:u1] = True
        assert torch.equal(inside, drawn)  # empty where the crop missed the box
    assert out.boxes.dtype == boxes.dtype


def test_the_draw_does_not_depend_on_what_is_passed_along():
    image = coordinates(40, 30)
    transform = JointTransform(size=(36, 36), crop=(20, 20), flips="both")
    for seed in range(5):
        alone = seeded(transform, seed, image).image
        state = torch.random.get_rng_state()
        full = seeded(transform, seed, image, torch.rand(1, 5, 5), mask=image[0],
                      boxes=torch.zeros(1, 4, dtype=torch.int32))  # fmt: skip
        assert torch.equal(alone, full.image)
        assert torch.equal(torch.random.get_rng_state(), state)
    empty = seeded(transform, 0, image)
    assert (empty.map, empty.mask, empty.boxes) == (None, None, None)


def test_all_crops_and_mirrors_occur():
    image = coordinates(6, 5)
    transform = JointTransform(crop=(4, 4), flips="both")
    corners = {tuple(transform(image).image[:, 0, 0].int().tolist()) for _ in range(400)}
    rows, columns = {0, 1, 2, 3, 4, 5}, {0, 1, 3, 4}
    assert corners == {(row, column) for row in rows for column in columns}


@pytest.mark.parametrize(
    ("flips", "expected"), [("none", {1}), ("horizontal", {1, -1}), ("both", {1, -1})]
)
def test_flips_are_those_asked_for(flips, expected):
    image = coordinates(4, 3)
    transform = JointTransform(flips=flips)
    outs = [transform(image).image for _ in range(40)]
    assert {int((out[1, 0, 1] - out[1, 0, 0]).item()) for out in outs} == expected
    upside_down = {bool(out[0, 0, 0] > 0) for out in outs}
    assert upside_down == ({False, True} if flips == "both" else {False})


def test_a_cached_map_of_the_full_image_is_brought_to_its_size_before_the_crop():
    torch.manual_seed(1)
    cam = torch.rand(1, 7, 7)
    image = torch.zeros(3, 50, 60)
    transform = JointTransform(size=(32, 32), crop=(32, 32), flips="none")
    expected = F.interpolate(cam[None], (32, 32), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(transform(image, cam).map, expected, atol=1e-6)


def test_resizing_scales_masks_by_nearest_and_boxes_with_the_image():
    image = torch.zeros(3, 20, 10, dtype=torch.uint8)
    mask = torch.zeros(20, 10, dtype=torch.uint8)
    mask[10:], mask[0] = 1, 255
    out = JointTransform(size=(40, 40), flips="none")(
        image, mask=mask, boxes=torch.tensor([[1, 2, 5, 10]], dtype=torch.int32)
    )
    assert out.image.dtype == out.mask.dtype == torch.uint8
    assert out.mask.unique().tolist() == [0, 1, 255]
    assert (out.mask[20:] == 1).all()
    assert out.boxes.tolist() == [[4, 4, 20, 20]]
    assert type(out.image) is type(out.mask) is type(out.boxes) is torch.Tensor


def test_bool_masks_stay_bool():
    mask = torch.eye(8, dtype=torch.bool)
    out = JointTransform(size=(16, 16), flips="none")(torch.zeros(1, 8, 8), mask=mask)
    assert out.mask.dtype == torch.bool
    assert torch.equal(out.mask, mask.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 4)}, r"size must be \(height, width\) of at least 1"),
        ({"crop": (4, 0)}, r"crop must be \(height, width\) of at least 1"),
        ({"size": (8, 8), "crop": (9, 4)}, r"crop must be within size \(8, 8\), got \(9, 4\)"),
        ({"flips": "up"}, "flips must be one of none, horizontal, both, got up"),
    ],
)
def test_bad_settings_give_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=rf"^wsfast\.JointTransform: {message}"):
        JointTransform(**settings)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"mask must be \(4, 5\), got \(5, 4\)"):
        JointTransform()(torch.zeros(3, 4, 5), mask=torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"image must be at least \(8, 8\), got \(4, 9\)"):
        JointTransform(crop=(8, 8))(torch.zeros(3, 4, 9))
