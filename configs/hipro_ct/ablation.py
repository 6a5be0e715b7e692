"""HiPro-CT's ablation on phantoms: the global contrast; the local one, too; all terms. One sweep.

Shards:    as for configs/hipro_ct/demo.py
Command:   GLOBAL="{'local': 0, 'hierarchy': 0, 'cross': 0, 'bottleneck': 0}"
           LOCAL="{'hierarchy': 0, 'cross': 0, 'bottleneck': 0}"
           medclip sweep --config configs/hipro_ct/ablation.py --workdir sweeps/hipro_ct --seeds 0,1,2 \
               --set data.shards=SHARDS --grid "objective.weights=$GLOBAL,$LOCAL,{}"
           medclip sweep --collect sweeps/hipro_ct --metric zero_shot/auroc_mean
Hardware:  2 CPU cores.
Time:      42 minutes for the nine trainings, beside other work (measured).
Expected:  on 413 unseen phantoms, 1628 to train on: AUROC 0.662, 0.707, 0.712, seeds 0.01 to 0.03 apart;
           R@10 of 100 pairs, image to text, 48.9, 57.7, 57.3 % (measured; more in docs/hipro-ct.md).
           On chest CT: AUROC 0.702, 0.712, 0.729; R@10 47.6, 52.9, 54.4 % (from the paper).
"""

import runpy
from pathlib import Path

_demo = runpy.run_path(str(Path(__file__).with_name("demo.py")))


def get_config():
    config = _demo["get_config"]()
    config.evaluation.split = "test"
    config.evaluation.evaluators = {
        "zero_shot": {"draws": 0},
        "retrieval": {"text": "impression"},
        "uncertainty": {"text": "impression"},
    }
    return config
