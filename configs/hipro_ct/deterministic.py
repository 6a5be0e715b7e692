"""HiPro-CT's ablation on phantoms, the row without variances: the same towers as points, by InfoNCE.

The paper compares with a deterministic CLIP trained under the same conditions. Here: volumes and impressions
alone, as in the row of the global contrast; `objective.loss=sigmoid` has its loss, too, without its variance.

Shards:    as for configs/hipro_ct/demo.py
Command:   medclip sweep --config configs/hipro_ct/deterministic.py --workdir sweeps/hipro_ct_points \
               --seeds 0,1,2 --jobs 2 --set data.shards=SHARDS --grid objective.loss=info_nce,sigmoid
           medclip sweep --collect sweeps/hipro_ct_points --metric zero_shot/auroc_mean
Hardware:  2 CPU cores.
Time:      not measured.
Expected:  not measured.
"""

from medclip_jax.objectives import clip

from . import ablation


def get_config():
    config = ablation.get_config()
    shared, config.objective = config.objective, clip.default_config()
    for name in ("vision", "text", "embedding_width", "centered", "logit_scale", "logit_bias", "same_study"):
        config.objective[name] = shared[name]
    config.evaluation.evaluators = {"zero_shot": {"draws": 0}, "retrieval": {"text": "impression"}}
    return config
