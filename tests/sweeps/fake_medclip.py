"""In place of `medclip train`: ends as the seed says and leaves what a run would. Sends no step anywhere."""

import json
import os
import signal
import sys
import time
from pathlib import Path

workdir = Path(sys.argv[sys.argv.index("--workdir") + 1])
config = json.loads((workdir / "config.json").read_text())
seed, steps = config["seed"], config["steps"]
started = workdir / "started"
started.write_text(f"{int(started.read_text()) + 1 if started.exists() else 1}")
print(f"devices {os.environ.get('CUDA_VISIBLE_DEVICES')}")
print("10%\r50%\r90%")


def log(step, **metrics):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")
    (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)


if seed == 13 and started.read_text() == "1":
    sys.exit("medclip train: something is wrong with 13")
if seed == 99:  # takes long; saves on SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: (log(1, loss=1.0), sys.exit(0)))
    (workdir / "ready").touch()
    time.sleep(60)
log(steps, loss=seed + config["batch_size"] / 10, evaluation_seconds=0.1)
