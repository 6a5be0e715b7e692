"""ASAP's ablations on phantoms: each part left out, and how many patches a sentence is about.

Shards:    as for configs/asap/demo.py
Command:   the paper's table VIII: organs, the sentences' token, the overall vector, each with and without
           medclip sweep --config configs/asap/ablation.py --workdir sweeps/asap_parts --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.weights.anatomy=0,1 \
               --grid objective.fusion.prior=False,True --grid objective.fusion.overall=False,True
           and without alignment of sentences
           medclip sweep --config configs/asap/ablation.py --workdir sweeps/asap_masked --seeds 0,1,2 \
               --set data.shards=SHARDS --set objective.weights.alignment=0 \
               --set objective.fusion.prior=False --grid objective.weights.anatomy=0,1
           table IX: what the organs are predicted from, and as what
           medclip sweep --config configs/asap/ablation.py --workdir sweeps/asap_anatomy --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.anatomy.block=1,0 \
               --grid objective.anatomy.labels=share,one_hot
           table X: patches of a sentence; 0 = chosen, 960 = all
           medclip sweep --config configs/asap/ablation.py --workdir sweeps/asap_patches --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.selection.fixed=0,2,8,32,960
           medclip sweep --collect sweeps/asap_parts --metric probe/auroc_mean
Hardware:  2 CPU cores.
Time:      not measured.
Expected:  on phantoms not measured yet.
           From the paper, Rad-ChestCT with 10 and 100 % of the labels: 71.6 and 73.8 with masking alone, 73.1
           and 75.5 with organs, 74.1 and 76.5 with sentences, 76.1 and 79.0 with everything.
"""

from . import demo


def get_config():
    config = demo.get_config()
    config.objective.weights.places = 0.0  # the paper has no such term
    config.evaluation.split = "test"
    config.evaluation.evaluators = {"probe": {}}
    return config
