"""Worker processes that cannot start are no fault of what they were to read."""

import subprocess
import sys

import pytest

SCRIPT = """
from medclip_jax.pool import map_guarded, map_in_order

def dead(value):
    return "dead"

print(list({call}))
"""


@pytest.mark.parametrize("call", ["map_in_order(abs, [1, -2], 2, dead)", "map_guarded(abs, [1], dead)"])
def test_a_script_without_a_guard_is_told(call, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(call=call))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    last = [line for line in done.stderr.splitlines() if line.startswith("RuntimeError")][-1]
    assert "if __name__ == '__main__':" in last
