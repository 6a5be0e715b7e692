"""The time to an event: its probability by 1, 6 and 12 months, with patients lost to follow-up.

Command:   medclip train --config configs/downstream/prognosis.py --workdir runs/prognosis \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/clip
           The shards hold measurement:survival_months, of the event or of the last look, and
           measurement:event, 1 or 0. With --config.objective.target.task=cox and
           --config.objective.target.horizons="()" it trains a proportional hazards model.
Hardware:  one GPU, or a laptop at the size of configs/own.
Time:      not measured on an archive; `medclip check` estimates it.
Expected:  not measured: it depends on the scans. `medclip evaluate --split test` says it.
"""

from . import classify


def get_config():
    config = classify.get_config()
    config.objective.target.update(
        task="hazards", time="survival_months", event="event", horizons=(1.0, 6.0, 12.0)
    )
    config.objective.head.dropout = 0.2
    config.evaluation.best.metric = "prediction/concordance"
    return config
