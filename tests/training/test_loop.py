import json

from toy import Toy, make_config, make_data

from medclip_jax.training.loop import train


def test_trains_and_the_loss_falls(tmp_path):
    last = train(make_config(steps=40), tmp_path, data=make_data(), objective_factory=Toy)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert last["loss"] < 0.6 * lines[0]["loss"]
