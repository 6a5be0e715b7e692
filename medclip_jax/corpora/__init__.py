"""Public corpora and the procedural phantom: each module yields `corpora.study.Study` records."""
