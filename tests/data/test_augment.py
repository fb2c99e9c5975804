"""What is done to training batches: against loops over images, and from random numbers that anybody can draw again."""

import dataclasses

import numpy as np
import pytest
import torch

from apical import data
from apical.data import DataError, ImageData, Split
from apical.data.augment import Crop, Cutout, Flip, ReflectedCrop, ResizedCrop, augmentations, drawn
from apical.data.options import DataOptions
from apical.data.prepared import prepared

U = torch.from_numpy(drawn(64, 22, seed=0, epoch=0, batch=0, what=0))


def images(n=64, channels=3, height=6, width=8):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, height, width, generator=g)


def test_half_of_the_images_are_mirrored():
    x = images()
    found = Flip()(x, U[:, :1])
    mirrored = [bool(torch.equal(a, b.flip(-1))) for a, b in zip(found, x, strict=True)]
    assert [bool(torch.equal(a, b)) for a, b in zip(found, x, strict=True)] == [not one for one in mirrored]
    assert 20 < sum(mirrored) < 44


@pytest.mark.parametrize(("crop", "mode"), [(Crop(padding=2), "constant"), (ReflectedCrop(), "reflect")])
def test_crops_are_places_in_the_padded_image(crop, mode):
    x = images()
    found, places = crop(x, U[:, :2]), set()
    for image, whole, u in zip(found, x.numpy(), U[:, :2].tolist(), strict=True):
        padded = np.pad(whole, [(0, 0), (2, 2), (2, 2)], mode=mode)
        top, left = (int(one * 5) for one in u)
        places.add((top, left))
        np.testing.assert_array_equal(image.numpy(), padded[:, top : top + 6, left : left + 8])
    assert len(places) > 20
    # The largest number below 1 rounds up in the product.
    assert crop(x[:1], torch.full((1, 2), 1 - 2**-24)).shape == (1, 3, 6, 8)


def test_flips_alternate_image_by_image_whatever_the_order_and_the_batches():
    pixels = torch.arange(40 * 2, dtype=torch.uint8).view(40, 1, 1, 2)
    split = prepared(
        ImageData("some", train := Split(pixels, torch.arange(40)), train, 40, tuple(map(str, range(40)))),
        augmentations("alternating-flip"),
    ).train
    mirrored = {}
    for epoch, (size, start, part) in enumerate([(7, 0, (0, 1)), (9, 0, (0, 1)), (7, 2, (0, 1)), (8, 0, (1, 2))]):
        for x, y in split.batches(size, 3, epoch, start, part=part):
            for image, label in zip(x, y.tolist(), strict=True):
                mirrored[epoch, label] = bool(image[0, 0, 0] > image[0, 0, 1])
    first = {label: mirrored[0, label] for label in range(40)}
    assert 10 < sum(first.values()) < 30
    assert all(found == (first[label] != bool(epoch % 2)) for (epoch, label), found in mirrored.items())
    several = next(iter(split.batches(40, [3, 4], 0)))
    assert [bool(one[0, 0, 0] > one[0, 0, 1]) for one in several[0][0]] == [
        first[one] for one in several[1][0].tolist()
    ]


def test_cutout_sets_a_square_to_nought_that_may_reach_over_the_border():
    x, sizes = torch.ones(64, 3, 6, 8), set()
    for image, u in zip(Cutout(size=4)(x, U[:, :2]), U[:, :2].tolist(), strict=True):
        top, left = int(u[0] * 6) - 2, int(u[1] * 8) - 2
        expected = np.ones((3, 6, 8))
        expected[:, max(0, top) : max(0, top + 4), max(0, left) : max(0, left + 4)] = 0
        np.testing.assert_array_equal(image.numpy(), expected)
        sizes.add(int((image[0] == 0).sum()))
    assert max(sizes) == 16
    assert min(sizes) < 16


def test_parts_of_random_size_lie_inside_and_have_allowed_shapes():
    u = drawn(2000, 22, seed=1, epoch=0, batch=0, what=0)
    top, left, h, w = ResizedCrop().boxes(u, 300, 500)
    assert min(top.min(), left.min()) >= 0
    assert ((top + h).max(), (left + w).max()) <= (300, 500)
    share = h * w / 150_000
    assert 0.079 < share.min() < 0.1
    assert 0.78 < share.max() <= 0.8  # as wide as 4 : 3 allows
    assert 0.74 < (w / h).min() < 0.77
    assert 1.3 < (w / h).max() < 1.35
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > 1500
    # Where no draw fits, the middle is taken, as wide as it may be.
    assert [int(one) for (one,) in ResizedCrop(scale=1).boxes(u[:1], 10, 100)] == [0, 43, 10, 13]


def test_a_part_is_resized_to_the_whole():
    x = images(8, height=8, width=8)
    np.testing.assert_allclose(ResizedCrop(scale=1, ratio=1)(x, U[:8]), x, atol=1e-6)
    found = ResizedCrop(scale=0.25, ratio=1)(torch.arange(8.0).expand(8, 1, 8, 8), U[:8])
    _, left, _, w = ResizedCrop(scale=0.25, ratio=1).boxes(U[:8].numpy(), 8, 8)
    means = [float(np.arange(a, a + b).mean()) for a, b in zip(left, w, strict=True)]
    np.testing.assert_allclose(found.mean((1, 2, 3)), means, atol=0.05)


@pytest.mark.parametrize(
    ("text", "word"),
    [("flop", "did you mean 'flip'"), ("crop:pad=3", "padding"), ("crop:padding=x", "number"), ("crop:padding=0", "least 1"),
     ("flip:p=1", "none"), ("resized-crop:scale=2", "at most 1"), ("flip+", "has no ''")],
)  # fmt: skip
def test_what_is_no_augmentation_is_told(text, word):
    with pytest.raises(ValueError, match=word):
        augmentations(text)
    assert any(word in one for one in DataOptions(augment=text).problems())


ALL = "flip+crop:padding=2+resized-crop+cutout:size=3"


def options(**given):
    return DataOptions(**given).applied(data.load())


def test_a_resumed_run_and_every_process_see_the_same_images():
    train = options(augment=ALL, normalize="own").train
    whole = list(train.batches(100, 3, epoch=2))
    for (x, _), (again, _) in zip(whole[7:], train.batches(100, 3, epoch=2, start=7), strict=True):
        assert torch.equal(x, again)
    thirds = [list(train.batches(100, 3, epoch=2, part=(rank, 3))) for rank in range(3)]
    for (x, y), *parts in zip(whole, *thirds, strict=True):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
    assert not torch.equal(next(train.batches(100, 3, epoch=3))[0], whole[0][0])


def test_seeds_side_by_side_see_what_each_sees_alone():
    train = options(augment=ALL).train
    together = list(train.batches(300, [1, 5], epoch=0))
    for number, seed in enumerate((1, 5)):
        for (x, y), (x1, y1) in zip(together, train.batches(300, seed, epoch=0), strict=True):
            assert torch.equal(x[number], x1)
            assert torch.equal(y[number], y1)


def test_only_training_batches_are_augmented_and_all_are_normalized():
    plain, found = data.load(), options(augment=ALL, normalize="0.5/0.25", validation=100)
    for split, raw in ((found.test, plain.test), (found.train, plain.train.part(found.train.of.index))):
        for given, expected in ((split.first(9), raw.first(9)), (next(split.in_order(9)), next(raw.in_order(9)))):
            np.testing.assert_allclose(given[0], (expected[0] - 0.5) / 0.25)
            assert torch.equal(given[1], expected[1])
        assert torch.equal(split.pictures(5)[0], raw.pictures(5)[0])
    assert DataOptions(augment=ALL).applied(found) is found


def test_cutout_comes_after_normalization():
    split = Split(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    found = prepared(ImageData("white", split, split, 1, ("a",)), (Cutout(size=8),), "0.5/0.25")
    assert not next(found.train.batches(4, 0, 0))[0].any()
    assert (found.test.first(4)[0] == 2).all()


@pytest.mark.parametrize("text", ["mine", "0.5", "0.5/0", "0.5/-1", "0.5/nan", "nan/1", "0.5,/1"])
def test_what_is_no_mean_and_deviation_is_told(text):
    assert any("normalize must be" in one and repr(text) in one for one in DataOptions(normalize=text).problems())


def test_numbers_for_other_channels_and_channels_that_do_not_vary_are_told():
    with pytest.raises(DataError, match="3 means for images of 1 channels"):
        options(normalize="imagenet")
    split = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"black: normalize='own'.*channel 0.*'0\.5/0\.25'"):
        prepared(ImageData("black", split, split, 1, ("a",)), (), "own")


def test_options_at_their_defaults_leave_data_as_it_is():
    given = data.load()
    assert DataOptions().applied(given) is given
    assert all(
        dataclasses.fields(DataOptions)[i].metadata["later"] for i in range(len(dataclasses.fields(DataOptions)))
    )


def test_streams_have_no_flips_that_alternate():
    class Stream(Split):
        @property
        def streamed(self):
            return True

    stream = Stream(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    some = ImageData("some", stream, stream, 1, ("a",))
    with pytest.raises(DataError, match=r"alternating-flip needs images that can be told apart.*take flip"):
        prepared(some, augmentations("alternating-flip"))


def test_some_images_are_the_same_ones_every_time():
    options = DataOptions(images=300, validation=100)
    some = options.applied("digits")
    assert [len(one) for one in some.splits.values()] == [300, 300, 100]
    again = options.applied(some)
    assert torch.equal(again.train.labels, options.applied("digits").train.labels)
    assert some.calls("test") == "the first 300 images of split 'test'"
    assert len(DataOptions(images=5000).applied("digits").train) == len(data.load().train)
