"""HiPro-CT by the letter of the paper, for comparison; `pretrain.py` has the defaults that we train with.

Shards:    as for configs/hipro_ct/pretrain.py
Command:   medclip train --config configs/hipro_ct/paper.py --workdir runs/hipro_ct_paper \
               --config.data.shards=SHARDS --config.objective.text.folder=CXR_BERT \
               --config.data.tokenizer=CXR_BERT
           (CXR_BERT: microsoft/BiomedVLP-CXR-BERT-specialized, a hub id or a local folder)
Hardware:  the paper used 4 NVIDIA H800, batch 16 over all of them.
Time:      not published; 50 000 steps.
Expected:  from the paper, RadGenome-ChestCT's test set: zero-shot AUROC 0.729, *weighted* F1 0.716 (mean of
           the F1 of presence and of absence, weighted by how many there are: `zero_shot/weighted_f1`;
           `zero_shot/f1` is the F1 of presence alone, another number), accuracy 0.684. Not reproduced here.

Differences from pretrain.py, one a line:
  bottleneck_reduce     "sum"    equation 8 sums over 512 dimensions: 230 at the start, times 0.1, where the
                                 mean is 0.45; it outweighs all other terms
  inclusion.reduce      "joint"  equation 7 integrates over all dimensions at once; ours asks each dimension
  inclusion.eps         1e-37    the paper presses no score: only beyond odds of 1e37 ours still does, which
                                 float32 needs
  ignore_normal_pairs   False    two normal organs of one name in different patients are asked as negatives,
                                 though either sentence is true of both
"""

from . import pretrain


def get_config():
    config = pretrain.get_config()
    config.objective.bottleneck_reduce = "sum"
    config.objective.inclusion.update(reduce="joint", eps=1e-37)
    config.objective.ignore_normal_pairs = False
    return config
