"""Eight devices give what one gives: the checks of ``eight_devices.py``."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def _run():
    flags = "--xla_force_host_platform_device_count=8"
    env = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(HERE.parent / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(HERE.parent),
    }
    program = [sys.executable, "-W", "error", str(HERE / "eight_devices.py")]
    return subprocess.run(program, env=env, capture_output=True, text=True, check=False)


def test_eight_devices_give_what_one_gives():
    run = _run()
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    assert len(found) > 15
    assert not {name: wrong for name, wrong in found.items() if wrong}
