import pytest

from medclip_jax.planning.collectives import Unreadable, bytes_by_kind, on_paper, read_collectives

PROGRAM = """
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %inner = (f32[8,4]{1,0}, bf16[16]{0}) all-reduce(%x, %x), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %out = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%called (x: f32[8,4]) -> f32[2,4] {
  ROOT %scattered = f32[2,4]{1,0:T(8,128)} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %start = (f32[8,4]{1,0}, f32[64,4]{1,0}) all-gather-start(%p), replica_groups=mesh['a'=4,'b'=2], \
device_ids=([2,4]T(1,0)) {'a','b'}, dimensions={0}, metadata={op_name="all-reduce(%p)"}
  %done = f32[64,4]{1,0} all-gather-done(%start)
  %alone = f32[1024]{0} all-reduce(%q), replica_groups={{0},{1}}, to_apply=%sum
  %loop = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body, backend_config=TURNS
  ROOT %r = f32[2,4]{1,0} call(%p), to_apply=%called
}
"""


def test_reads_async_pairs_loops_calls_and_groups():
    found = read_collectives(PROGRAM.replace("TURNS", '{"known_trip_count":{"n":"3"}}'))
    assert [(item.kind, item.bytes, item.group, item.times) for item in found] == [
        ("all-gather", 64 * 4 * 4, 8, 1),
        ("all-reduce", 1024 * 4, 1, 1),
        ("all-reduce", 8 * 4 * 4 + 16 * 2, 4, 3),
        ("reduce-scatter", 8 * 4 * 4, 4, 1),
    ]
    assert bytes_by_kind(found) == {"all-gather": 1024, "all-reduce": 3 * 160, "reduce-scatter": 128}


def test_says_when_it_cannot_tell():
    with pytest.raises(Unreadable, match="loop"):
        read_collectives(PROGRAM.replace("TURNS", "{}"))
    with pytest.raises(Unreadable, match="takes part"):
        read_collectives(PROGRAM.replace("TURNS", '"known_trip_count":{"n":"3"}').replace("{{0},{1}}", "?"))


def test_on_paper():
    trained = {"kernel": (800.0, True), "bias": (40.0, False)}
    count = {
        item.name: (item.bytes, item.axis)
        for item in on_paper(
            trained=trained,
            frozen={"table": (200.0, True)},
            features=64.0,
            data=2,
            fsdp=4,
            microbatches=3,
            fetches=2,
        )
    }
    assert count["parameters gathered"] == (2 * 1000, "fsdp")
    assert count["gradients scattered"] == (3 * 800, "fsdp")
    assert count["gradients"] == (3 * (200 + 40), "data")
    assert count["features gathered"] == (64, "all")
    data = {"trained": trained, "frozen": {}, "features": 0.0, "data": 8, "fsdp": 1, "fetches": 1}
    (gradients,) = on_paper(**data, microbatches=3, gradient_share=0.5, sums_once=True)
    assert gradients.bytes == 840
    one = {"trained": trained, "frozen": {}, "features": 9.0, "microbatches": 1, "fetches": 1}
    assert on_paper(data=1, fsdp=1, **one) == []
