"""What is compiled ahead of time is what is launched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SOURCE = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import recorded_launches
recorded_launches.main()
"""


@pytest.mark.slow
def test_each_launch_at_a_real_models_shape_is_compiled_ahead_of_time():
    done = subprocess.run(
        [sys.executable, "-c", SOURCE],
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["launches"] > 0
    assert found["unlisted"] == []
