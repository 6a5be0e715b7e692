"""What the tests of exported folders share."""

import pytest

from medclip_jax.reports.tokenizer import train_wordpiece
from tests.export.twins import TEXT


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Small, and knows the prompts."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_wordpiece([*TEXT, "no pericardial effusion; lungs are clear"] * 3, folder, 300)
