"""Grades of coronary calcium in their order, from the Agatston score that the table has as a measurement.

Command:   medclip train --config configs/downstream/grade.py --workdir runs/grade \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/clip
           --config.objective.target.task=multi_class tells the grades each by itself, as Cardiac-CLIP does.
Hardware:  one GPU, or a laptop at the size of configs/own.
Time:      not measured on an archive; `medclip check` estimates it.
Expected:  not measured: it depends on the scans. `medclip evaluate --split test` says it.
"""

from . import classify


def get_config():
    config = classify.get_config()
    config.objective.target.update(
        task="ordinal", measurement="agatston_score", edges=(1.0, 100.0, 400.0, 1000.0)
    )
    return config
