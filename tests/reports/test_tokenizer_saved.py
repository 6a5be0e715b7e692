"""A tokenizer as it is saved with a model: without paths and limits of where it came from."""

import json

import numpy as np
import pytest

from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece

TEXT = ["There is cardiomegaly.", "There is no pericardial effusion."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(TEXT * 3, tmp_path_factory.mktemp("t"), 100)


class TestTokenizer:
    def test_saved_without_paths_and_limits_of_its_source(self, tokenizer, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        for folder in (source, target):
            folder.mkdir()
        tokenizer.save(source)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        settings |= {"name_or_path": "/home/me/bert", "tokenizer_file": "/home/me/bert/tokenizer.json"}
        settings |= {"model_max_length": 64}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        content = json.loads((source / "tokenizer.json").read_text())
        content["truncation"] = {
            "max_length": 4,
            "stride": 0,
            "strategy": "LongestFirst",
            "direction": "Right",
        }
        (source / "tokenizer.json").write_text(json.dumps(content))
        load_tokenizer(source).save(target)
        assert all("/home/me" not in path.read_text() for path in target.iterdir())
        again = load_tokenizer(target)
        assert again.limit == 64
        np.testing.assert_array_equal(again(TEXT, 32), tokenizer(TEXT, 32))
        (target / "tokenizer.json").unlink()
        np.testing.assert_array_equal(load_tokenizer(target)(TEXT, 32), tokenizer(TEXT, 32))

    def test_a_vocabulary_that_is_not_all_there_is_to_it(self, tmp_path):
        """BPE: a list of its tokens would be read as a WordPiece."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<mask>", "a", "b", "ab"])}
        backend = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        source, target = tmp_path / "source", tmp_path / "target"
        for folder in (source, target):
            folder.mkdir()
        backend.save(str(source / "tokenizer.json"))
        load_tokenizer(source).save(target)
        assert not (target / "vocab.txt").exists()
        assert load_tokenizer(target)(["ab a"], 5).tolist() == [[6, 4, 0, 0, 0]]
