"""HiPro-CT's ablation on phantoms: the global contrast; the local one, too; all terms; damaged views, too.

Every row is ranked twice: by -CSD, which counts the learned variance, and by the means alone
(`zero_shot_means`, `retrieval_means`). A row without any variance is configs/hipro_ct/deterministic.py.

Shards:    as for configs/hipro_ct/demo.py
Command:   GLOBAL="{'local': 0, 'hierarchy': 0, 'cross': 0, 'bottleneck': 0, 'damage': 0}"
           LOCAL="{'hierarchy': 0, 'cross': 0, 'bottleneck': 0, 'damage': 0}"
           FULL="{'damage': 0}"
           medclip sweep --config configs/hipro_ct/ablation.py --workdir sweeps/hipro_ct --seeds 0,1,2 \
               --jobs 2 --set data.shards=SHARDS --grid "objective.weights=$GLOBAL,$LOCAL,$FULL,{}"
           medclip sweep --config configs/hipro_ct/deterministic.py --workdir sweeps/hipro_ct_points \
               --seeds 0,1,2 --jobs 2 --set data.shards=SHARDS --grid objective.loss=info_nce,sigmoid
           medclip sweep --collect sweeps/hipro_ct --metric zero_shot/auroc_mean
           medclip sweep --collect sweeps/hipro_ct --metric zero_shot_means/auroc_mean
Hardware:  2 CPU cores.
Time:      67 minutes for the twelve trainings, beside other work (measured).
Expected:  the rankings by means and the rows without variance are not measured. The others,
           on 413 unseen phantoms, 1628 to train on: AUROC 0.656, 0.750, 0.727, 0.742, seeds 0.01 to 0.03
           apart; R@10 of 100 pairs, image to text, 50.3, 64.2, 58.8, 63.1 % (measured;
           docs/reference/hipro-ct.md).
           On chest CT: AUROC 0.702, 0.712, 0.729; R@10 47.6, 52.9, 54.4 % (from the paper).
"""

from . import demo


def get_config():
    config = demo.get_config()
    config.evaluation.split = "test"
    config.evaluation.evaluators = {
        "zero_shot": {"draws": 0},
        "zero_shot_means": {"kind": "zero_shot", "draws": 0, "ranking": "means"},
        "retrieval": {"text": "impression"},
        "retrieval_means": {"kind": "retrieval", "text": "impression", "ranking": "means"},
        "uncertainty": {"text": "impression"},
    }
    return config
