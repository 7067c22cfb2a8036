"""Pieces and crops of pictures against transformers' processors."""

import gc
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.image_processing_backends import PilBackend

from engine.contract.picture_facts import MOST_TIMES_LONGER, Crop, PictureFacts
from engine.pictures.crops import cut_crops
from tests.helpers.models.tiny_wrappers import (
    CROP_KINDS,
    MOSAIC_KINDS,
    Kind,
    load_processor,
    make_wrapper,
)

ROWS = 3
Picture = np.ndarray[Any, np.dtype[np.uint8]]
GRIDS: tuple[Kind, ...] = ("smolvlm", "idefics3")


PLAIN = PictureFacts(
    side=1,
    rows_per_crop=1,
    marker="<image>",
    placeholder="<image>",
    placeholder_id=0,
    resampling="bicubic",
    before="",
    after="",
)


def facts_of(kind: str, side: int, longest_edge: int = 0, *, cuts: bool = True) -> PictureFacts:
    if kind == "gemma3":
        return replace(
            PLAIN,
            side=side,
            rows_per_crop=ROWS,
            marker="<start_of_image>",
            placeholder="<image_soft_token>",
            resampling="bilinear",
            before="\n\n<start_of_image>",
            after="<end_of_image>\n\n",
        )
    return replace(
        PLAIN,
        side=side,
        rows_per_crop=ROWS,
        resampling="lanczos",
        before="<fake_token_around_image><global-img>",
        after="<fake_token_around_image>",
        longest_edge=longest_edge,
        before_cell="<fake_token_around_image>" if cuts else None,
    )


def text_of(facts: PictureFacts, width: int, height: int) -> str:
    rows = facts.placeholder * facts.rows_per_crop
    pieces = facts.pieces(width, height)
    return "".join(piece if isinstance(piece, str) else rows for piece in pieces)


def crops_of(facts: PictureFacts, width: int, height: int) -> list[Crop]:
    return [piece for piece in facts.pieces(width, height) if isinstance(piece, Crop)]


def their_pictures(kind: str, side: int, longest_edge: int, **flags: Any) -> Any:
    """Their processor of pictures, as it works with Pillow, without normalisation."""
    plain = {"do_rescale": False, "do_normalize": False} | flags
    if kind == "gemma3":
        return transformers.Gemma3ImageProcessorPil(size={"height": side, "width": side}, **plain)
    create = {
        "smolvlm": transformers.SmolVLMImageProcessorPil,
        "idefics3": transformers.Idefics3ImageProcessorPil,
    }[kind]
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": side}}
    return create(**sizes, do_pad=False, **plain)


def random_size() -> tuple[int, int]:
    def length(most: int) -> int:
        return random.choice((random.randint(1, 9), random.randint(1, most), most))

    width, height = length(5000), length(3000)
    return random.choice(((width, height), (height, width), (width, width)))


def random_pictures() -> Iterator[Picture]:
    """Pictures of noise, some of them a line or a point."""
    sizes = [(random.randint(2, 300), random.randint(2, 300)) for _ in range(6)]
    sizes += [(1, 1), (1, random.randint(2, 200)), (random.randint(2, 200), 1), (700, 500)]
    for width, height in sizes:
        yield np.random.randint(0, 256, (height, width, 3), np.uint8)


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    return picture.shape[1], picture.shape[0]


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    folders = {
        kind: tmp_path_factory.mktemp(kind) for kind in (*CROP_KINDS, "mistral3", *MOSAIC_KINDS)
    }
    return {kind: load_processor(make_wrapper(folder, kind)) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("cuts", [True, False])
def test_the_text_of_grids_is_the_processors(processors, monkeypatch, kind, cuts):
    def resized(self: Any, image: Any, size: Any, **_: Any) -> Any:
        return np.broadcast_to(np.uint8(1), (3, size.height, size.width))

    # Sizes alone are compared.
    monkeypatch.setattr(PilBackend, "resize", resized)
    monkeypatch.setattr(PilBackend, "process_image", lambda self, image, **_: image)
    processor = processors[kind]
    processor.image_seq_len = ROWS
    for _ in range(60):
        side = random.choice((28, 77, 364, 384, 512))
        edge = random.choice((4 * side, 2 * side, side, random.randint(side // 2, 4 * side)))
        width, height = random_size()
        theirs = their_pictures(kind, side, edge, do_image_splitting=cuts)
        picture = np.broadcast_to(np.uint8(1), (3, height, width))
        found = theirs([picture], return_row_col_info=True)
        expected = processor.replace_image_token(found, 0)
        facts = facts_of(kind, side, edge, cuts=cuts)
        assert text_of(facts, width, height) == expected, (side, edge, width, height)
        assert len(crops_of(facts, width, height)) == len(found["pixel_values"][0])


def test_the_text_of_gemmas_pictures_is_the_processors(processors):
    processor, size = processors["gemma3"], random_size()
    facts = facts_of("gemma3", random.randint(1, 900))
    expected = processor.full_image_sequence.replace(
        facts.placeholder * processor.image_seq_length, facts.placeholder * ROWS
    )
    assert text_of(facts, *size) == expected


@pytest.mark.parametrize("kind", CROP_KINDS)
@pytest.mark.parametrize("cuts", [True, False])
def test_crops_have_the_pixels_of_the_processor(kind, cuts):
    for picture in random_pictures():
        side = random.choice((28, 77))
        edge = random.choice((4 * side, random.randint(side // 2, 4 * side)))
        flags = {} if kind == "gemma3" else {"do_image_splitting": cuts}
        theirs = their_pictures(kind, side, edge, **flags)
        expected = np.array(theirs([Image.fromarray(picture)])["pixel_values"])
        facts = facts_of(kind, side, edge, cuts=cuts)
        found = cut_crops(picture, crops_of(facts, *size_of(picture)), facts.resampling)
        shape = (len(found), 3, side, side)
        assert np.array_equal(
            np.stack(found).transpose(0, 3, 1, 2), expected.reshape(shape).astype(np.uint8)
        ), (picture.shape, side, edge)


def test_no_picture_has_more_crops_than_the_longest_edge_allows():
    side = random.randint(8, 512)
    edge = random.randint(side, 2048)
    most = (edge // side + 2) ** 2
    for size in [(1 << 20, 1 << 20), (1 << 20, 1), (1, 1 << 20), random_size()]:
        assert len(crops_of(facts_of("smolvlm", side, edge), *size)) <= most + 1


def test_pictures_in_grids_have_the_pixels_of_the_processor():
    for picture in random_pictures():
        patch, joined = random.randint(3, 8), random.randint(1, 3)
        side = patch * joined
        fewest = side**2 * random.randint(1, 30)
        most = fewest + side**2 * random.randint(1, 300)
        theirs = transformers.Qwen2VLImageProcessorPil(
            size={"shortest_edge": fewest, "longest_edge": most},
            patch_size=patch,
            merge_size=joined,
            temporal_patch_size=1,
            do_rescale=False,
            do_normalize=False,
        )
        expected = theirs([Image.fromarray(picture)], return_tensors="np")
        facts = replace(PLAIN, side=side, pixel_bounds=(fewest, most))
        [crop] = crops_of(facts, *size_of(picture))
        [found] = cut_crops(picture, [crop], facts.resampling)
        [(_, lines, columns)] = expected["image_grid_thw"] // joined
        assert found.shape == (lines * side, columns * side, 3), picture.shape
        part = facts.black(crop)
        assert (part.length, part.columns) == (lines * columns, columns)
        cut = found.reshape(lines, joined, patch, columns, joined, patch, 3)
        patches = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(expected["pixel_values"].shape)
        assert np.array_equal(patches, expected["pixel_values"].astype(np.uint8))


def test_pixtrals_pictures_have_the_text_and_pixels_of_the_processor(processors):
    processor = processors["mistral3"]
    for picture in random_pictures():
        side, longest = random.randint(3, 20), random.randint(200, 400)
        theirs = transformers.PixtralImageProcessorPil(
            size={"longest_edge": longest}, patch_size=side, do_rescale=False, do_normalize=False
        )
        expected = theirs([Image.fromarray(picture)], return_tensors="np")
        facts = replace(
            PLAIN,
            side=side,
            marker="[IMG]",
            placeholder="[IMG]",
            after="[IMG_END]",
            longest_side=longest,
            line_end="[IMG_BREAK]",
        )
        [crop] = crops_of(facts, *size_of(picture))
        [found] = cut_crops(picture, [crop], facts.resampling)
        [pixels] = expected["pixel_values"]
        assert np.array_equal(found.transpose(2, 0, 1), pixels.astype(np.uint8)), picture.shape
        processor.patch_size, processor.spatial_merge_size = side, 1
        text = facts.line_end.join(facts.placeholder * length for length in facts.lines(crop))
        assert text + facts.after == processor.replace_image_token(expected, 0)
        part = facts.black(crop)
        assert facts.fits(part) and part.num_states == sum(facts.lines(crop)) <= facts.most_states
        assert part.length == text.count("[")


@pytest.mark.parametrize("kind", MOSAIC_KINDS)
def test_mosaics_have_as_many_rows_as_in_the_processor(kind, processors):
    processor, patch, grid = processors[kind], 14, random.randint(2, 24)
    side = patch * grid
    stated = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    mosaics = [[side * down, side * across] for down, across in stated]
    processor.patch_size, processor.image_processor.image_grid_pinpoints = patch, mosaics
    stated_first = tuple((width, height) for height, width in mosaics)
    facts = replace(PLAIN, side=side, rows_per_crop=grid**2, mosaics=stated_first)
    if kind == "llava_onevision":
        facts = replace(facts, most_mosaic_crops=random.randint(1, 4))
        processor.vision_aspect_ratio = f"anyres_max_{facts.most_mosaic_crops}"
        processor.num_image_tokens = grid**2
    assert facts.largest(1).num_states == grid**2
    assert facts.largest(facts.most_states).num_states == facts.most_states
    for _ in range(200):
        width, height = random_size()
        crops = crops_of(facts, width, height)
        rows = processor._get_number_of_features(height, width, side, side)
        rows -= kind == "llava_next"
        assert sum(sum(facts.lines(crop)) for crop in crops) == rows, (width, height)
        parts = [facts.black(crop) for crop in crops]
        assert all(facts.fits(p) and p.num_states <= facts.most_states for p in parts)
    part = facts.black(crops_of(facts, 100, 100)[1])
    for wrong in ({"columns": 3 * grid + 2}, {"width": 5}, {"length": part.length + 1}):
        assert not facts.fits(replace(part, **wrong))


def test_gemma_4s_pictures_have_the_pixels_of_the_processor():
    for picture in random_pictures():
        patch, joined, most = random.randint(2, 5), random.randint(1, 3), random.choice((70, 140))
        theirs = transformers.Gemma4ImageProcessorPil(
            patch_size=patch, pooling_kernel_size=joined, max_soft_tokens=most, do_rescale=False
        )
        expected = theirs([Image.fromarray(picture)], return_tensors="np")
        facts = replace(PLAIN, side=patch * joined, most_squares=most)
        [crop] = crops_of(facts, *size_of(picture))
        [found] = cut_crops(picture, [crop], facts.resampling)
        lines, columns = (length // patch for length in found.shape[:2])
        patches = found.reshape(lines, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
        patches = patches.reshape(lines * columns, -1)
        pixels = expected["pixel_values"][0][: len(patches)]
        assert np.array_equal(patches, pixels.astype(np.uint8)), picture.shape
        part = facts.black(crop)
        assert [part.num_states] == list(expected["num_soft_tokens_per_image"])
        assert facts.fits(part) and part.num_states <= facts.most_states


def test_tiles_have_the_pixels_of_the_processor():
    for picture in random_pictures():
        side, fewest = random.randint(8, 40), random.randint(1, 3)
        most = random.randint(max(2, fewest), 12)
        theirs = transformers.GotOcr2ImageProcessorPil(
            size={"height": side, "width": side},
            crop_to_patches=True,
            min_patches=fewest,
            max_patches=most,
            do_rescale=False,
            do_normalize=False,
        )
        expected = np.array(theirs([Image.fromarray(picture)])["pixel_values"])
        facts = replace(facts_of("gemma3", side), resampling="bicubic", tiles=(fewest, most))
        crops = crops_of(facts, *size_of(picture))
        found = np.stack(cut_crops(picture, crops, facts.resampling))
        assert np.array_equal(found.transpose(0, 3, 1, 2), expected.astype(np.uint8))


def test_long_pictures_in_grids_are_refused():
    facts = facts_of("gemma3", 8)
    grids = replace(facts, pixel_bounds=(64, 6400))
    length = random.randint(1, 50)
    size = (length * MOST_TIMES_LONGER, length)
    assert grids.takes(*size) and grids.takes(*size[::-1])
    assert not grids.takes(size[0] + 1, length) and facts.takes(size[0] + 1, length)


def test_nothing_is_left_of_a_picture_that_was_cut():
    """A process that decodes has a limit on its memory, so whatever stays makes it refuse later
    pictures."""
    picture = np.zeros((20, 30, 3), np.uint8)
    crop = Crop(resizes=((40, 50), (30, 20)), box=(0, 0, 10, 10))
    gc.disable()
    try:
        before = sum(isinstance(one, Image.Image) for one in gc.get_objects())
        cut_crops(picture, [crop], "bicubic")
        after = sum(isinstance(one, Image.Image) for one in gc.get_objects())
    finally:
        gc.enable()
    assert after == before
