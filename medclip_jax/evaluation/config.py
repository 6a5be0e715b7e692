"""What a config file of `medclip evaluate` can say, locked as a run's: an unknown key is an error."""

from __future__ import annotations

from medclip_jax.sections import OpenSection, Section


def evaluation_config() -> Section:
    """Every key that an evaluation can set, with its default.

    A file fills it, and the command line has the last word:

        from medclip_jax.evaluation.config import evaluation_config

        def get_config():
            config = evaluation_config()
            config.evaluators = {"zero_shot": {}, "probe": {"baseline": "random"}}
            return config
    """
    return Section(
        {
            "shards": "",  # folder of `medclip prepare`; "" = that of the run
            "split": "test",  # that is scored; "fold" = the one that the run held out
            "subset": "",  # what of the train split is learned from, as --subset
            "train_shards": "",  # another set that evaluators learn from and choose on
            "label_map": "",  # whose labels are which of the scored set: a file (.toml), or a label set
            "evaluators": OpenSection(),  # name to settings, as in a run's config: docs/reference/metrics.md
            "protocols": (),  # such as ("ct_rate/mean7",), instead of evaluators or beside them
            "tables": "",  # of `medclip label`, laid over the records, with commas between
            "findings": "",  # a findings file (.toml), whose prompts are used
            "other_grid": False,  # score on volumes of another shape, spacing, crop or modality
            "batch_size": 8,  # volumes at a time
            "cache": "",  # folder for features of volumes
        },
        name="config",
    )
