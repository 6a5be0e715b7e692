"""T3D's ablations on phantoms: both losses, the report that views read, views, blocks, networks, data.

Shards:    as for configs/t3d/demo.py
Command:   the paper's table IV a: both losses and views alone, then contrast alone
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_losses --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.weights.contrast=1,0
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_contrast --seeds 0,1,2 \
               --set data.shards=SHARDS --set objective.weights.views=0
           table IV b: views read the report, or do not
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_text --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.views.read_report=True,False
           the paper's head, over the 32 places of the batch
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_head --seeds 0,1,2 \
               --set data.shards=SHARDS --set objective.views.head=batch_linear \
               --set objective.views.batch_size=32
           table IV c and V, figures 5 and 3: views, blocks, networks, data
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_views --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.views.count=1,2,3,4
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_depth --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.views.depth=1,2,3
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_network --seeds 0,1,2 \
               --set data.shards=SHARDS --grid objective.vision.depth=10,18,34,50
           medclip sweep --config configs/t3d/ablation.py --workdir sweeps/t3d_data --seeds 0,1,2 \
               --set data.shards=SHARDS --grid 'data.train_split=train[:25%],train[:50%],train'
           medclip sweep --collect sweeps/t3d_text --metric zero_shot/auroc_mean
Hardware:  one CPU core.
Time:      1 to 1.2 minutes of processor time a run, and 48 to 64 s more where its program is not compiled yet
           (measured). Seeds share the compiled program.
Expected:  on phantoms, zero-shot AUROC: contrast alone 0.585, views alone 0.494, both
           0.565; without the report 0.541; 1, 3 views 0.551, 0.565; the paper's head
           0.504 (measured, 3 seeds, docs/results.md).
           From the paper, zero-shot AUROC on CT-RATE: contrast alone 0.718, views alone 0.714, both 0.737;
           without the report 0.722; 1, 2, 3, 4 views 0.704, 0.718, 0.737, 0.730.
"""

from . import demo


def get_config():
    config = demo.get_config()
    config.evaluation.split = "test"
    config.evaluation.evaluators = {
        "zero_shot": {"draws": 0},  # the spread is that of seeds
        "retrieval": {"text": "impression"},
        "views": {"draws": 0},
    }
    return config
