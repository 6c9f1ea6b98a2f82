"""Where regions lie and how far they overlap: region files drawn by hand against what is counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingregions import regions
from lingregions.report import survey


def region(name: str, query: list[list[int]], norm: list[int]) -> regions.Region:
    """A region of one layer: q_proj [4, 3] (axes heads, embed) and a norm [3] (embed)."""
    axes = (
        ("layers.input_layernorm", ("layers", "embed")),
        ("layers.self_attn.q_proj", ("layers", "heads", "embed")),
    )
    masks = {
        "layers": {
            "input_layernorm": jnp.asarray([norm], bool),
            "self_attn": {"q_proj": jnp.asarray([query], bool)},
        }
    }
    selection = regions.Selection(15, 0, 2, empty=("model.layers.0.input_layernorm.weight",))
    return regions.Region(masks, regions.Provenance(name, "drawn by hand", model="m0", axes=axes, selection=selection))


def test_region_files_are_surveyed_as_a_hand_counts(tmp_path):
    first = region("first", [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], [1, 0, 0])
    second = region("second", [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]], [0, 0, 0])
    for what in (first, second):
        regions.save(what, tmp_path / f"{what.name}.safetensors")
    (one, two), overlap = survey.read(sorted(tmp_path.glob("*.safetensors")))
    assert (one.name, one.cells) == ("first", (("0", "q", 3, 12), ("0", "norm 1", 1, 3)))
    assert one.carried == (3, 0, 1)
    assert one.capacity == 5
    assert two.carried == (1, 1, 2)
    # first: 4 entries, second: 4; in common [0, 0] and [2, 2]
    assert overlap.values == ((1.0, 2 / 6), (2 / 6, 1.0))
    # 4/15 each: 16/225 of 8/15 - 16/225
    assert overlap.chance == pytest.approx(16 / 104)
    assert one.notes == ("1 matrix is too small for the fraction to select one entry (k < 1).",)


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=9))
def test_common_entries_are_counted_for_every_pair(masks):
    label = sum(np.asarray(mask, np.uint64) << np.uint64(place) for place, mask in enumerate(masks))
    array = np.asarray(masks, int)
    np.testing.assert_array_equal(survey._common(label, len(masks)), array @ array.T)


@pytest.mark.parametrize(
    ("cells", "even"),
    [
        ([(10, 1000), (1, 150)], True),  # floor(0.01 x 150) = 1
        ([(10, 1000), (2, 150)], False),
        ([(10, 1000), (0, 50)], True),  # k < 1
        ([(0, 1000), (0, 50)], False),  # empty
        ([(10, 1000)], True),
    ],
)
def test_one_fraction_of_every_matrix_is_recognised(cells, even):
    assert survey.Survey("r", tuple(("0", "q", *cell) for cell in cells)).even is even


def test_files_that_are_not_parallel_are_surveyed_one_by_one(tmp_path):
    regions.save(region("first", [[1, 0, 0]] * 4, [1, 0, 0]), tmp_path / "first.safetensors")
    regions.save(region("second", [[0, 0, 1]], [0, 0, 1]), tmp_path / "second.safetensors")
    found, overlap = survey.read(sorted(tmp_path.glob("*.safetensors")), ["base", "second"])
    assert overlap is None
    assert [(each.name, each.carried, each.capacity) for each in found] == [
        ("second", (0, 0, 2), 2),
        ("first", (5, 0, 0), 5),
    ]
    assert [profile.held for profile in found[0].profiles] == [1.0, 1.0]
