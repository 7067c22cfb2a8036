"""What is compiled ahead of time is what Triton's JIT compiles for a launch."""

import json

import pytest

from kernels.tools.launches import recorded
from tests.helpers.plain_python import printed

SOURCE = """
import json
from kernels.tools.launches import recorded
from tests.helpers.kernels.faulty_kernels import CALLS, good, launch
from tests.helpers.kernels.lowered_launches import lower, lowered
with recorded(90) as launches:
    for size in (1, 2, 16, 1 << 31):
        good(size)
    good(16, offset=1)
    good(16, offset=8)
    CALLS["single row"]()
    CALLS["any number of rows"]()
    CALLS["too much shared memory"]()
arguments = [[one.arguments, one.options, one.key] for one in launches]
faults = {}
for name in ("good", "many rows", "any number of rows", "single row"):
    try:
        lower(launch(name))
    except Exception as error:
        faults[name] = f"{error} {error.__cause__}"
print(json.dumps({"arguments": arguments, "faults": faults, "cases": lowered()}))
"""


@pytest.fixture(scope="module")
def found():
    """What a process of its own prints: in this one kernels are interpreted."""
    return json.loads(printed("-c", SOURCE))


@pytest.fixture
def arguments(found):
    """The arguments of launches with other sizes, alignments and options."""
    return found["arguments"]


def test_integers_that_are_one_are_constants(arguments):
    assert arguments[0][0]["size"] == "1"
    assert arguments[6][0]["num_rows"] == "1"


def test_unless_the_kernel_says_otherwise(arguments):
    assert arguments[7][0]["num_rows"] == "i32"


def test_what_16_divides_is_known_to_be_so(arguments):
    sizes = [one[0]["size"] for one in arguments[:4]]
    assert sizes == ["1", "i32", "i32/16", "i64/16"]
    pointers = [one[0]["x_ptr"] for one in arguments[2:6]]
    assert pointers == ["*bf16/16", "*bf16/16", "*bf16", "*bf16/16"]


def test_options_are_those_of_the_launch_or_the_defaults(arguments):
    assert arguments[0][1] == {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    assert arguments[8][1] == {"num_warps": 8, "num_stages": 9, "enable_fp_fusion": True}


def test_launches_that_share_their_code_have_the_same_key(arguments):
    keys = [one[2] for one in arguments]
    assert keys[2] == keys[5]
    assert len(set(keys)) == len(keys) - 1


def test_nothing_is_recorded_where_kernels_are_interpreted():
    with pytest.raises(RuntimeError, match="interpreter switched off"), recorded(80):
        pass


@pytest.mark.slow
def test_every_case_can_be_compiled_as_it_is_launched(found):
    assert found["cases"]["launches"] > 100
    assert found["cases"]["faults"] == []


def test_a_single_row_that_cannot_be_compiled_is_found(found):
    assert list(found["faults"]) == ["single row"]
    assert "no attribute 'to'" in found["faults"]["single row"]
